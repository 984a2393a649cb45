"""JAX: XLA's int8 product; the 62-bit products of a rescaling are made in a scope with 64-bit types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, Int8, Int32

DTYPES = {4: jnp.int8, 8: jnp.int8, 16: jnp.int16, 32: jnp.int32}


def matmul_int8(
    x: Int8[Array, "*rows inner"], weight: Int8[Array, "outer inner"], bias: Int32[Array, " outer"] | None = None
) -> Int32[Array, "*rows outer"]:
    y = lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return y if bias is None else y + bias


def matmul_int8_dyadic(
    x: Int8[Array, "*rows inner"],
    weight: Int8[Array, "outer inner"],
    bias: Int32[Array, " outer"] | None,
    multiplier: Int32[Array, " channels"],
    shift: Int32[Array, " channels"],
    *,
    bits: int = 8,
) -> Int[Array, "*rows outer"]:
    return requantise(matmul_int8(x, weight, bias), multiplier, shift, bits=bits)


def matmul_int8_scaled(
    x: Int8[Array, "*rows inner"],
    weight: Int8[Array, "outer inner"],
    x_scale: Float[Array, "*some"],
    weight_scale: Float[Array, " scales"],
    bias: Float[Array, " outer"] | None = None,
) -> Float[Array, "*rows outer"]:
    y = matmul_int8(x, weight).astype(jnp.float32) * x_scale * weight_scale
    return y if bias is None else y + bias


def requantise(
    x: Int[Array, "*rows channel"],
    multiplier: Int32[Array, " channels"],
    shift: Int32[Array, " channels"],
    *,
    bits: int = 8,
) -> Int[Array, "*rows channel"]:
    with jax.enable_x64(True):
        return rescaled(x, multiplier, shift, bits)


def rescaled(x: Array, multiplier: Array, shift: Array, bits: int) -> Array:
    """The rescaling itself, where 64-bit types are at hand. Shared with the Pallas backend."""
    wide, e = jnp.int64, shift.astype(jnp.int64)
    half = lax.shift_right_arithmetic(lax.shift_left(jnp.ones_like(e), e), jnp.ones_like(e))
    total = x.astype(wide) * multiplier.astype(wide) + half
    y = lax.shift_right_arithmetic(total, jnp.broadcast_to(e, total.shape))
    low, high = jnp.asarray(-(2 ** (bits - 1)), wide), jnp.asarray(2 ** (bits - 1) - 1, wide)
    return jnp.minimum(jnp.maximum(y, low), high).astype(DTYPES[bits])
