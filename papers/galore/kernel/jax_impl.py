"""JAX: whole-array operations, which the compiler fuses; a code is found by halving."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jaxtyping import Float, Float32, UInt8

from .tables import STEPS, ZERO, tables


def adam8bit(
    gradient: Float[Array, " count"],
    mean: UInt8[Array, " count"],
    mean_scale: Float32[Array, " blocks"],
    square: UInt8[Array, " count"],
    square_scale: Float32[Array, " blocks"],
    *,
    step: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    block: int = 256,
    grid: bool = False,
) -> tuple[
    Float32[Array, " count"], UInt8[Array, " count"], Float32[Array, " blocks"], UInt8[Array, " count"], Float32[Array, " blocks"]
]:
    signed, unsigned, m_edges, v_edges = map(jnp.asarray, tables())
    g, m_codes, v_codes = (blocks(x, block, fill) for x, fill in ((gradient.astype(jnp.float32), 0), (mean, ZERO), (square, 0)))
    m = beta1 * (signed[m_codes] * mean_scale[:, None]) + (1 - beta1) * g
    v = beta2 * (unsigned[v_codes] * square_scale[:, None]) + (1 - beta2) * g * g
    correct1, correct2 = corrections(step, beta1, beta2)
    direction = m / correct1 / (jnp.sqrt(v) / correct2 + epsilon)
    m_codes, m_scale = _encode(m, m_edges, grid)
    v_codes, v_scale = _encode(v, v_edges, grid)
    count = gradient.size
    return direction.reshape(-1)[:count], m_codes.reshape(-1)[:count], m_scale, v_codes.reshape(-1)[:count], v_scale


def blocks(x: Array, block: int, fill: int = 0) -> Array:
    """One row for each block; a ragged last one is filled up with what decodes to zero and so changes no maximum."""
    return rearrange(jnp.pad(x, (0, -x.size % block), constant_values=fill), "(block each) -> block each", each=block)


def corrections(step: Any, beta1: float, beta2: float) -> tuple[Array, Array]:
    """1 - beta1^t and sqrt(1 - beta2^t) in float32, by expm1: beta2^t is near 1 early on, and its rounding would be all that is left."""
    t = jnp.asarray(step, jnp.float32)
    first, second = (-jnp.expm1(t * (math.log(beta) if beta else -math.inf)) for beta in (beta1, beta2))
    return first, jnp.sqrt(second)


def _encode(x: Array, edges: Array, grid: bool) -> tuple[Array, Array]:
    scale = jnp.abs(x).max(1)
    quotient = x * (1 / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny))[:, None]
    if grid:
        quotient = jnp.floor((quotient + 1) * 0.5 * STEPS + 0.5) * (2 / STEPS) - 1
    codes = jnp.searchsorted(edges, quotient, method="scan_unrolled")
    return (jnp.where(scale[:, None] > 0, codes, 0) if grid else codes).astype(jnp.uint8), scale
