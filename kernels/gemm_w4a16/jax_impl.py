"""JAX: a scan over tiles of k; the backward is another, from the same words."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float, Float16, Int8, Int32

from .layout import COLUMNS, NIBBLES, ROWS, SIZES, WORDS, scale_pattern

TILE = 1 << 20
"""Weights of a tile, at most."""


def pack(
    codes: Int8[Array, "k n"], scales: Float[Array, "groups n"], *, group: int = 128
) -> tuple[Int32[Array, "tiles words"], Float[Array, "groups n"]]:
    nibbles = rearrange(codes.astype(jnp.int32) + 8, f"{ROWS} {COLUMNS} -> {WORDS} {NIBBLES}", **SIZES)
    packed = nibbles[..., 0]
    for place in range(1, 8):
        packed |= nibbles[..., place] << (4 * place)
    stored, natural, sizes = scale_pattern(len(scales) == 1)
    return packed, rearrange(scales, f"{natural} -> {stored}", **sizes)


def unpack(
    packed: Int32[Array, "tiles words"], scales: Float[Array, "groups n"], *, group: int = 128
) -> tuple[Int8[Array, "k n"], Float[Array, "groups n"]]:
    nibbles = (packed[..., None] >> jnp.arange(0, 32, 4, dtype=jnp.int32)) & 15
    codes = rearrange(nibbles - 8, f"{WORDS} {NIBBLES} -> {ROWS} {COLUMNS}", **SIZES).astype(jnp.int8)
    return codes, ordered(scales)


def dequantize(packed: Int32[Array, "tiles words"], scales: Float[Array, "groups n"], *, group: int = 128) -> Float[Array, "k n"]:
    return _values(packed, ordered(scales))


def halves(words: Int32[Array, "*shape"]) -> Float16[Array, "*shape 4 2"]:
    """The eight codes of each word, q in -8..7, as float16: entry (p, t) is nibble p + 4 t; as the PyTorch twin."""
    found = []
    for part in (words, words >> 8):
        low = lax.bitcast_convert_type((part & 0x000F000F) | 0x64006400, jnp.float16)
        high = lax.bitcast_convert_type((part & 0x00F000F0) | 0x64006400, jnp.float16)
        found += [low - jnp.float16(1032), high * jnp.float16(0.0625) - jnp.float16(72)]
    return jnp.stack(found, axis=-2)


def matmul(
    x: Float[Array, "*batch k"],
    packed: Int32[Array, "tiles words"],
    scales: Float[Array, "groups n"],
    *,
    group: int = 128,
) -> Float[Array, "*batch n"]:
    n = packed.shape[1] // 2
    if not x.size:
        return jnp.zeros((*x.shape[:-1], n), x.dtype)
    wide = ordered(scales).astype(jnp.promote_types(x.dtype, jnp.float32))
    return _product(x.reshape(-1, x.shape[-1]), packed, wide).reshape(*x.shape[:-1], n)


@jax.custom_vjp
def _product(x: Array, packed: Array, scales: Array) -> Array:
    tiles, wide = _tiled(packed, scales), jnp.promote_types(x.dtype, jnp.float32)
    xs = rearrange(x, "m (tile k) -> tile m k", tile=tiles[0].shape[0])

    def add(y: Array, each: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return y + dot(each[0], _values(*each[1:]).astype(x.dtype), 1, 0), None

    y, _ = lax.scan(add, jnp.zeros((x.shape[0], packed.shape[1] // 2), wide), (xs, *tiles))
    return y.astype(x.dtype)


def _forward(x: Array, packed: Array, scales: Array) -> Any:
    return _product(x, packed, scales), (packed, scales)


def backward(saved: Any, dy: Array) -> tuple[Any, ...]:
    """dx = dy W^T, and no gradient for the words and their scales. Shared with the Pallas backend."""
    packed, scales = saved
    dx = lax.map(lambda each: dot(dy, _values(*each).astype(dy.dtype), 1, 1), _tiled(packed, scales))
    dx = rearrange(dx, "tile m k -> m (tile k)").astype(dy.dtype)
    return dx, np.zeros(packed.shape, jax.dtypes.float0), jnp.zeros_like(scales)


_product.defvjp(_forward, backward)


def _tiled(packed: Array, scales: Array) -> tuple[Array, Array]:
    """Words (count, tiles, 2 n) and scales (count, groups, n), each whole groups and at most TILE weights if that is one."""
    groups, n = packed.shape[0] // 8, packed.shape[1] // 2
    most = max(1, TILE // (128 * n))
    each = next(size for size in range(min(most, groups), 0, -1) if groups % size == 0)
    words = packed.reshape(groups // each, 8 * each, 2 * n)
    whole = jnp.broadcast_to(scales, (groups, n)) if len(scales) == 1 else scales
    return words, whole.reshape(groups // each, each, n)


def _values(packed: Array, scales: Array) -> Array:
    """W (k, n) from words and scales in the order of the columns, in the scales' dtype."""
    codes = rearrange(halves(packed), f"{WORDS} (block half) two -> {ROWS} {COLUMNS}", **SIZES)
    grouped = rearrange(codes.astype(scales.dtype), "(g row) n -> g row n", g=len(scales))
    return rearrange(grouped * scales[:, None], "g row n -> (g row) n")


def ordered(scales: Float[Array, "groups n"]) -> Float[Array, "groups n"]:
    """Stored scales by column."""
    stored, natural, sizes = scale_pattern(len(scales) == 1)
    return rearrange(scales, f"{stored} -> {natural}", **sizes)


def dot(a: Array, b: Array, left: int, right: int) -> Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((left,), (right,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=wide)
