"""JAX: whole rows at once. Softmax and the narrow GELU fit into 32 bits; the rest is made in a scope with 64-bit types."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int, Int32


def shiftmax(x: Int[Array, "*rows count"], *, unit: int, n: int = 15, bits: int = 16) -> Int[Array, "*rows count"]:
    return softmax_of_rows(x, unit, n, bits, x.shape[-1])


def shift_gelu(
    x: Int[Array, "*rows count"], *, unit: int, n: int = 23, wide: bool = False, shifts: bool = False
) -> Int32[Array, "*rows count"]:
    if not wide:
        return gelu_of_rows(x.astype(jnp.int32), unit, n, 31, shifts)
    with jax.enable_x64(True):
        return gelu_of_rows(x.astype(jnp.int64), unit, n, 62, shifts).astype(jnp.int32)


def i_layernorm(x: Int[Array, "*rows count"], *, steps: int = 10) -> Int32[Array, "*rows count"]:
    with jax.enable_x64(True):
        return norm_of_rows(x, steps, x.shape[-1])


def softmax_of_rows(x: Array, unit: int, n: int, bits: int, count: int) -> Array:
    """Of the first ``count`` entries of each row; what stands behind them is filling. Shared with the Pallas backend."""
    x = x.astype(jnp.int32)
    inside = _inside(x, count)
    x = jnp.where(inside, x, jnp.int32(-(2**29)))
    e = jnp.where(inside, _shift_exp(x - x.max(axis=-1, keepdims=True), unit, n), _like(x, 0))
    factor = lax.div(_like(e[..., :1], 2**31 - 1), e.sum(axis=-1, keepdims=True, dtype=jnp.int32))
    y = lax.shift_right_arithmetic(e * factor, _like(e, 32 - bits))
    return y.astype(jnp.int16 if bits == 16 else jnp.int8)


def gelu_of_rows(x: Array, unit: int, n: int, bits: int, shifts: bool) -> Array:
    """Filling may be anything up to 0. Shared with the Pallas backend."""
    most = jnp.maximum(x.max(axis=-1, keepdims=True, initial=0), _like(x[..., :1], 0))
    below, minus = x - most, -most
    if shifts:
        below, minus = (a + _right(a, 1) + _right(a, 3) + _right(a, 4) for a in (below, minus))
    first, second = _shift_exp(below, unit, n), _shift_exp(minus, unit, n)
    factor = lax.div(_like(first, 2**bits - 1), first + second)
    return x * _right(first * factor, bits - 7)


def norm_of_rows(x: Array, steps: int, count: int) -> Array:
    """Where 64-bit types are at hand. Shared with the Pallas backend."""
    x = x.astype(jnp.int64)
    inside, nought = _inside(x, count), _like(x, 0)
    total = jnp.where(inside, x, nought).sum(axis=-1, keepdims=True)
    mean = _floored(total * _like(total, 2) + _like(total, count), 2 * count)
    d = jnp.where(inside, x - mean, nought)
    v = (d * d).sum(axis=-1, keepdims=True)
    k = _like(v, 2**16)
    k = lax.fori_loop(0, steps, lambda _, k: _right(k + lax.div(v, k), 1), k)
    return _right(d * lax.div(_like(k, 2**31 - 1), k), 1).astype(jnp.int32)


def _shift_exp(x: Array, unit: int, n: int) -> Array:
    x = jnp.maximum(x + _right(x, 1) - _right(x, 4), _like(x, -n * unit))
    # What is divided is not negative, so truncation is floor.
    q = lax.div(-x, _like(x, unit))
    t = x + q * _like(x, unit) + _like(x, 2 * unit)
    up = lax.shift_left(t, jnp.maximum(_like(q, n - 1) - q, _like(q, 0)))
    return jnp.where(q < _like(q, n), up, _right(t, 1))


def _floored(a: Array, b: int) -> Array:
    """floor(a / b), b > 0, through a division that truncates."""
    q = lax.div(a, _like(a, b))
    return q - (a < q * _like(a, b)).astype(a.dtype)


def _inside(x: Array, count: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) < jnp.int32(count)


def _right(x: Array, by: int) -> Array:
    return lax.shift_right_arithmetic(x, _like(x, by))


def _like(x: Array, value: int) -> Any:
    return jnp.full(x.shape, value, x.dtype)
