"""JAX: a scan over tiles of k; the backward is another, from the same words and places."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax
from jaxtyping import Bool, Float, Int8, Int16, Int32

from kernels import sparse24
from kernels.gemm_w4a16.jax_impl import TILE, dot

from .layout import COLUMNS, KEPT, META, META_COLUMNS, META_SIZES, NIBBLES, ROWS, SIZES, WORDS, scale_pattern


def sparse_pack(
    codes: Int8[Array, "k n"], scales: Float[Array, "groups n"], mask: Bool[Array, "k n"], *, group: int = 128
) -> tuple[Int32[Array, "tiles words"], Int16[Array, "tiles words"], Float[Array, "groups n"]]:
    kept, found = sparse24.pack(codes.T, mask.T, backend="jax")
    nibbles = rearrange(kept.T.astype(jnp.int32) + 8, f"{KEPT} {COLUMNS} -> {WORDS} {NIBBLES}", **SIZES)
    values = nibbles[..., 0]
    for place in range(1, 8):
        values |= nibbles[..., place] << (4 * place)
    words = lax.bitcast_convert_type(found, jnp.int16)
    meta = rearrange(words, f"{META_COLUMNS} (tile half) -> {META}", **META_SIZES)
    return values, meta, _moved(scales, COLUMNS, scale_pattern(len(scales) == 1))


def sparse_unpack(
    values: Int32[Array, "tiles words"], meta: Int16[Array, "tiles words"], scales: Float[Array, "groups n"], *, group: int = 128
) -> tuple[Int8[Array, "k n"], Float[Array, "groups n"], Bool[Array, "k n"]]:
    codes, mask = _decoded(values, meta)
    return codes.astype(jnp.int8), ordered(scales), mask


def sparse_matmul(
    x: Float[Array, "*batch k"],
    values: Int32[Array, "tiles words"],
    meta: Int16[Array, "tiles words"],
    scales: Float[Array, "groups n"],
    *,
    group: int = 128,
) -> Float[Array, "*batch n"]:
    n = values.shape[1] // 2
    if not x.size:
        return jnp.zeros((*x.shape[:-1], n), x.dtype)
    wide = ordered(scales).astype(jnp.promote_types(x.dtype, jnp.float32))
    return _product(x.reshape(-1, x.shape[-1]), values, meta, wide).reshape(*x.shape[:-1], n)


@jax.custom_vjp
def _product(x: Array, values: Array, meta: Array, scales: Array) -> Array:
    tiles, wide = _tiled(values, meta, scales), jnp.promote_types(x.dtype, jnp.float32)
    xs = rearrange(x, "m (tile k) -> tile m k", tile=tiles[0].shape[0])

    def add(y: Array, each: tuple[Array, ...]) -> tuple[Array, None]:
        return y + dot(each[0], _values(*each[1:]).astype(x.dtype), 1, 0), None

    y, _ = lax.scan(add, jnp.zeros((x.shape[0], values.shape[1] // 2), wide), (xs, *tiles))
    return y.astype(x.dtype)


def _forward(x: Array, values: Array, meta: Array, scales: Array) -> Any:
    return _product(x, values, meta, scales), (values, meta, scales)


def backward(saved: Any, dy: Array) -> tuple[Any, ...]:
    """dx = dy W^T, and no gradient for what is stored. Shared with the Pallas backend."""
    values, meta, scales = saved
    dx = lax.map(lambda each: dot(dy, _values(*each).astype(dy.dtype), 1, 1), _tiled(values, meta, scales))
    dx = rearrange(dx, "tile m k -> m (tile k)").astype(dy.dtype)
    none = (np.zeros(each.shape, jax.dtypes.float0) for each in (values, meta))
    return dx, *none, jnp.zeros_like(scales)


_product.defvjp(_forward, backward)


def _tiled(values: Array, meta: Array, scales: Array) -> tuple[Array, Array, Array]:
    groups, n = values.shape[0] // 4, values.shape[1] // 2
    most = max(1, TILE // (128 * n))
    each = next(size for size in range(min(most, groups), 0, -1) if groups % size == 0)
    whole = jnp.broadcast_to(scales, (groups, n)) if len(scales) == 1 else scales
    shape = (groups // each, 4 * each, 2 * n)
    return values.reshape(shape), meta.reshape(shape), whole.reshape(groups // each, each, n)


def _values(values: Array, meta: Array, scales: Array) -> Array:
    codes, _ = _decoded(values, meta)
    grouped = rearrange(codes.astype(scales.dtype), "(g row) n -> g row n", g=len(scales))
    return rearrange(grouped * scales[:, None], "g row n -> (g row) n")


def _decoded(values: Array, meta: Array) -> tuple[Array, Array]:
    """Codes (k, n), int32, zero where nothing was kept, and the mask."""
    nibbles = (values[..., None] >> jnp.arange(0, 32, 4, dtype=jnp.int32)) & 15
    kept = rearrange(nibbles - 8, f"{WORDS} {NIBBLES} -> tile half pair two {COLUMNS}", **SIZES)
    words = rearrange(meta, f"{META} -> tile half {META_COLUMNS}", **META_SIZES).astype(jnp.int32)
    where = (words[..., None] >> jnp.arange(0, 16, 2, dtype=jnp.int32)) & 3
    where = rearrange(where, "tile half n (pair two) -> tile half pair two n", two=2)
    hits = where[:, :, :, :, None] == jnp.arange(4, dtype=jnp.int32)[:, None]
    codes = jnp.where(hits, kept[:, :, :, :, None], 0).sum(3, dtype=jnp.int32)
    turn = f"tile half pair place n -> {ROWS} n"
    return rearrange(codes, turn), rearrange(hits.any(3), turn)


def ordered(scales: Float[Array, "groups n"]) -> Float[Array, "groups n"]:
    """Stored scales by column."""
    return _moved(scales, scale_pattern(len(scales) == 1), COLUMNS)


def _moved(scales: Array, source: str, target: str) -> Array:
    return scales if source == target else rearrange(scales, f"g {source} -> g {target}", c=8, block=2, j=4)
