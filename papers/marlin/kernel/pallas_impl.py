"""Pallas, for GPUs: as :mod:`kernels.gemm_w4a16.pallas_impl`, with a matrix for each of the four places of a group."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int16, Int32

from common.ops import Exported

from . import jax_impl
from .layout import META, META_SIZES, ROWS

TILE = 32
"""Rows of x of one program."""
STRIPS = 2
"""Strips of 64 columns of one program."""


def sparse_matmul(
    x: Float[Array, "*batch k"],
    values: Int32[Array, "tiles words"],
    meta: Int16[Array, "tiles words"],
    scales: Float[Array, "groups n"],
    *,
    group: int = 128,
) -> Float[Array, "*batch n"]:
    if x.dtype == jnp.float64:
        raise ValueError("sparse_matmul: backend 'pallas' computes in float32, got float64; use backend='jax'")
    if not x.size or jax.default_backend() == "tpu":
        return jax_impl.sparse_matmul(x, values, meta, scales, group=group)
    flat = x.reshape(-1, x.shape[-1])
    return _product(flat, values, meta, jax_impl.ordered(scales)).reshape(*x.shape[:-1], values.shape[1] // 2)


@jax.custom_vjp
def _product(x: Array, values: Array, meta: Array, scales: Array) -> Array:
    m, groups = len(x), values.shape[0] // 4
    padded = jnp.pad(x, ((0, -m % TILE), (0, 0)))
    parts = rearrange(padded, f"m {ROWS} -> (half place) m (tile pair)", half=2, pair=4, place=4)
    words = values.reshape(values.shape[0], -1, 8, 4, 4)
    places = rearrange(meta, f"{META} -> half block tile strip c (high low)", **META_SIZES).astype(jnp.int32)
    by_block = rearrange(scales, "g (strip c block j) -> g block strip c j", c=8, block=2, j=4)
    whole = jnp.broadcast_to(by_block, (groups, *by_block.shape[1:])).astype(jnp.float32)
    y = _walk(parts, words, places, whole, jax.default_backend())
    return rearrange(y, "m block strip c j -> m (strip c block j)")[:m]


def _forward(x: Array, values: Array, meta: Array, scales: Array) -> Any:
    return _product(x, values, meta, scales), (values, meta, scales)


_product.defvjp(_forward, jax_impl.backward)


@functools.partial(jax.jit, static_argnames=("platform",))
def _walk(parts: Array, words: Array, places: Array, scales: Array, platform: str) -> Array:
    """y (m, block, strip, c, j) of x (half place, m, k / 8), words (k / 32, strip, c, pair, j), places (half, block, k / 32,
    strip, c, j) and scales (g, block, strip, c, j)."""
    m, strips = parts.shape[1], words.shape[1]
    return pl.pallas_call(
        _kernel,
        grid=(m // TILE, strips // STRIPS),
        in_specs=[
            pl.BlockSpec((8, TILE, parts.shape[2]), lambda i, s: (0, i, 0)),
            pl.BlockSpec((words.shape[0], STRIPS, 8, 4, 4), lambda i, s: (0, s, 0, 0, 0)),
            pl.BlockSpec((2, 2, words.shape[0], STRIPS, 8, 4), lambda i, s: (0, 0, 0, s, 0, 0)),
            pl.BlockSpec((scales.shape[0], 2, STRIPS, 8, 4), lambda i, s: (0, 0, s, 0, 0)),
        ],
        out_specs=pl.BlockSpec((TILE, 2, STRIPS, 8, 4), lambda i, s: (i, 0, s, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((m, 2, strips, 8, 4), parts.dtype),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2) if platform == "gpu" else None,
    )(parts, words, places, scales)


def _kernel(parts: Any, words: Any, places: Any, scales: Any, out: Any) -> None:
    lanes = STRIPS * 32

    def step(g: Any, sums: Any) -> Any:
        tile = words[pl.ds(4 * g, 4), :, :, :, :].transpose(0, 3, 1, 2, 4).reshape(16, lanes)
        shift = (lax.broadcasted_iota(jnp.int32, (16, lanes), 0) & 3) * 4
        found = []
        for block in range(2):
            group = jnp.zeros((TILE, lanes), jnp.float32)
            for half in range(2):
                first, second = (((tile >> (16 * two + 8 * block + 4 * half)) & 15) - 8 for two in range(2))
                word = places[half, block, pl.ds(4 * g, 4), :, :, :].reshape(4, 1, lanes)
                where = jnp.broadcast_to(word, (4, 4, lanes)).reshape(16, lanes) >> shift
                for place in range(4):
                    x = parts[4 * half + place, :, pl.ds(16 * g, 16)]
                    codes = jnp.where((where & 3) == place, first, jnp.where(((where >> 2) & 3) == place, second, 0))
                    group += lax.dot_general(
                        x, codes.astype(x.dtype), (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST,
                        preferred_element_type=jnp.float32,
                    )  # fmt: skip
            found.append(sums[block] + group * scales[g, block, :, :, :].reshape(1, lanes))
        return tuple(found)

    zero = jnp.zeros((TILE, lanes), jnp.float32)
    for block, found in enumerate(lax.fori_loop(0, words.shape[0] // 4, step, (zero, zero))):
        out[:, block, :, :, :] = found.reshape(TILE, STRIPS, 8, 4).astype(out.dtype)


def exports() -> Iterator[Exported]:
    for kind in ("float32", "float16", "bfloat16"):
        places, scales = ((2, 2, 8, 4, 8, 4), "int32"), ((2, 2, 4, 8, 4), "float32")
        shapes = (((8, 2 * TILE, 32), kind), ((8, 4, 8, 4, 4), "int32"), places, scales)
        yield Exported(f"sparse-walk-{kind}", functools.partial(_walk, platform="gpu"), shapes, ("cuda",))
