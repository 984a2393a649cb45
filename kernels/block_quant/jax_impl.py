"""JAX: whole arrays; a short code book is compared with, a long one searched by halves."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, UInt8

SMALL = 32


def quantize_blockwise(
    x: Float[Array, "*shape"], code: Float32[Array, " size"], *, block: int = 64
) -> tuple[UInt8[Array, " count"], Float32[Array, " blocks"]]:
    rows = in_blocks(x.astype(jnp.float32).reshape(-1), block)
    absmax = jnp.abs(rows).max(axis=1, initial=0)
    scaled = rows * (1 / jnp.maximum(absmax, jnp.finfo(jnp.float32).tiny))[:, None]
    method = "compare_all" if code.size <= SMALL else "scan_unrolled"
    found = jnp.searchsorted(middles(code), scaled, method=method)
    return found.astype(jnp.uint8).reshape(-1)[: x.size], absmax


def dequantize_blockwise(
    indices: UInt8[Array, " count"],
    absmax: Float32[Array, " blocks"],
    code: Float32[Array, " size"],
    *,
    block: int = 64,
) -> Float32[Array, " count"]:
    return (code[in_blocks(indices, block)] * absmax[:, None]).reshape(-1)[: indices.size]


def in_blocks(flat: Array, block: int) -> Array:
    """(count,) as (blocks, block), the last one filled with zeros. Shared with the Pallas backend."""
    blocks = -(-flat.size // block)
    return jnp.pad(flat, (0, blocks * block - flat.size)).reshape(blocks, block)


def middles(code: Array) -> Array:
    return (code[1:] + code[:-1]) / 2
