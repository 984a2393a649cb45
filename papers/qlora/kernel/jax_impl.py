"""JAX: a scan over tiles of rows of W; the backward is another, from the same bytes."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float, Float32, UInt8

TILE = 1 << 18
"""Weights of a tile, at most."""


def matmul_nf4(
    x: Float[Array, "*batch k"],
    packed: UInt8[Array, "n half"],
    absmax: Float[Array, " blocks"],
    code: Float[Array, " 16"],
    *,
    block: int = 64,
) -> Float[Array, "*batch n"]:
    if not x.size or not packed.size:
        return jnp.zeros((*x.shape[:-1], packed.shape[0]), x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    return _product(flat, packed, absmax, code, block).reshape(*x.shape[:-1], packed.shape[0])


def dequantize_nf4(
    packed: UInt8[Array, "n half"], absmax: Float32[Array, " blocks"], code: Float32[Array, " 16"], *, block: int = 64
) -> Float32[Array, "n k"]:
    return _values(packed.reshape(-1), absmax, code, block).reshape(packed.shape[0], 2 * packed.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product(x: Array, packed: Array, absmax: Array, code: Array, block: int) -> Array:
    n, half = packed.shape
    tiles, rows = _tiled(packed, absmax, block)

    def one(tile: tuple[Array, Array]) -> Array:
        w = _values(*tile, code, block).reshape(rows, 2 * half).astype(x.dtype)
        return _dot(x, w, 1, 1).astype(x.dtype)

    y = lax.map(one, tiles)
    return rearrange(y, "tile m row -> m (tile row)")[:, :n]


def _forward(x: Array, packed: Array, absmax: Array, code: Array, block: int) -> Any:
    return _product(x, packed, absmax, code, block), (packed, absmax, code)


def backward(block: int, saved: Any, dy: Array) -> tuple[Any, ...]:
    """dx = dy W, and no gradient for the bytes and their scales. Shared with the Pallas backend."""
    packed, absmax, code = saved
    (n, half), m = packed.shape, dy.shape[0]
    tiles, rows = _tiled(packed, absmax, block)
    count = tiles[0].shape[0]
    dys = rearrange(jnp.pad(dy, ((0, 0), (0, count * rows - n))), "m (tile row) -> tile m row", tile=count)

    def add(dx: Array, tile: tuple[Array, Array, Array]) -> tuple[Array, None]:
        w = _values(*tile[:2], code, block).reshape(rows, 2 * half).astype(dy.dtype)
        return dx + _dot(tile[2], w, 1, 0), None

    wide = jnp.promote_types(dy.dtype, jnp.float32)
    dx, _ = lax.scan(add, jnp.zeros((m, 2 * half), wide), (*tiles, dys))
    return dx.astype(dy.dtype), np.zeros(packed.shape, jax.dtypes.float0), jnp.zeros_like(absmax), jnp.zeros_like(code)


_product.defvjp(_forward, backward)


def _tiled(packed: Array, absmax: Array, block: int) -> tuple[tuple[Array, Array], int]:
    """Bytes (tiles, bytes) and scales (tiles, blocks), filled up with zeros, and how many rows a tile has.

    Every tile is whole rows and whole blocks.
    """
    n, half = packed.shape
    least = block // math.gcd(block, 2 * half)
    rows = min(max(1, TILE // (2 * half * least)), -(-n // least)) * least
    tiles = -(-n // rows)
    data = jnp.pad(packed.reshape(-1), (0, tiles * rows * half - packed.size)).reshape(tiles, -1)
    scale = jnp.pad(absmax, (0, tiles * rows * 2 * half // block - absmax.size)).reshape(tiles, -1)
    return (data, scale), rows


def _values(packed: Array, absmax: Array, code: Array, block: int) -> Array:
    """Flat values of flat packed indices."""
    values = code[jnp.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)]
    rows = jnp.pad(values, (0, absmax.size * block - values.size)).reshape(-1, block)
    return (rows * absmax[:, None]).reshape(-1)[: values.size]


def _dot(a: Array, b: Array, left: int, right: int) -> Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((left,), (right,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=wide)
