"""JAX: one fused expression, and one for its gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from .layout import limits, split

Split = tuple[int, int, int]


def fake_quantize(
    x: Float[Array, "*shape"],
    scale: Float[Array, "*channels"],
    *,
    bits: int,
    axis: int | None = None,
    group: int | None = None,
    zero_point: Int[Array, "*channels"] | None = None,
    signed: bool = True,
) -> Float[Array, "*shape"]:
    shape = split(x.shape, axis, group)
    return _fake_quantize(x, scale, *bounds(limits(bits, signed), zero_point, scale, shape[1]), shape)


def bounds(ends: tuple[int, int], zero_point: Array | None, scale: Array, channels: int) -> tuple[Array, Array]:
    """Limits of the rounded quotient, (1, channels, 1). Shared with the Pallas backend."""
    shift = jnp.zeros(channels, jnp.int32) if zero_point is None else zero_point
    shift = shift.astype(wide(scale)).reshape(1, channels, 1)
    return ends[0] - shift, ends[1] - shift


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fake_quantize(x: Array, scale: Array, low: Array, high: Array, shape: Split) -> Array:
    quotient, step = parts(x, scale, shape)
    return (jnp.round(jnp.clip(quotient, low, high)) * step).reshape(x.shape).astype(x.dtype)


def _forward(x: Array, scale: Array, low: Array, high: Array, shape: Split) -> Any:
    return _fake_quantize(x, scale, low, high, shape), (x, scale, low, high)


def _backward(shape: Split, kept: Any, dy: Array) -> Any:
    x, scale, low, high = kept
    quotient, _ = parts(x, scale, shape)
    rounded = jnp.round(quotient)
    place = jnp.clip(rounded, low, high)
    inside = rounded == place
    seeds = dy.reshape(shape)
    terms = seeds * (place - jnp.where(inside, quotient, 0))
    to_x = jnp.where(inside, seeds, 0).reshape(x.shape)
    return to_x, terms.sum((0, 2)).reshape(scale.shape).astype(scale.dtype), jnp.zeros_like(low), jnp.zeros_like(high)


_fake_quantize.defvjp(_forward, _backward)


def parts(x: Array, scale: Array, shape: Split) -> tuple[Array, Array]:
    """x / s as (outer, channels, inner) and s as (1, channels, 1)."""
    step = scale.astype(wide(scale)).reshape(1, shape[1], 1)
    return x.astype(step.dtype).reshape(shape) * (1 / step), step


def wide(x: Array) -> Any:
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
