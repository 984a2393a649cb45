"""Pallas, for GPUs: a program owns COLUMNS columns and walks down k, a group at a time, over the words as they lie.

Words of a tile are (strip, c, pair, j); one transposition in registers brings the pairs beside the tiles, so that each of the eight
nibbles is a matrix of 32 rows of W. The rows of x are cut the same way beforehand. On a TPU a word's column would have to change
lanes; it takes the XLA version (``jax_impl``), as does the gradient.
"""

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
from jaxtyping import Float, Int32

from common.ops import Exported

from . import jax_impl
from .layout import ROWS, SCALE_SIZES, SIZES

TILE = 32
"""Rows of x of one program."""
STRIPS = 2
"""Strips of 64 columns of one program."""


def matmul(
    x: Float[Array, "*batch k"],
    packed: Int32[Array, "tiles words"],
    scales: Float[Array, "groups n"],
    *,
    group: int = 128,
) -> Float[Array, "*batch n"]:
    if x.dtype == jnp.float64:
        raise ValueError("matmul: backend 'pallas' computes in float32, got float64; use backend='jax'")
    if not x.size or jax.default_backend() == "tpu":
        return jax_impl.matmul(x, packed, scales, group=group)
    flat = x.reshape(-1, x.shape[-1])
    return _product(flat, packed, jax_impl.ordered(scales)).reshape(*x.shape[:-1], packed.shape[1] // 2)


@jax.custom_vjp
def _product(x: Array, packed: Array, scales: Array) -> Array:
    m, groups = len(x), packed.shape[0] // 8
    pad = -m % TILE
    parts = rearrange(jnp.pad(x, ((0, pad), (0, 0))), f"m {ROWS} -> (two half) m (tile pair)", **_sizes("half", "pair", "two"))
    by_block = rearrange(scales, "g (strip j block c) -> g block strip c j", **SCALE_SIZES)
    whole = jnp.broadcast_to(by_block, (groups, *by_block.shape[1:])).astype(jnp.float32)
    words = packed.reshape(packed.shape[0], -1, 8, 4, 4)
    y = _walk(parts, words, whole, jax.default_backend())
    return rearrange(y, "m block strip c j -> m (strip j block c)")[:m]


def _forward(x: Array, packed: Array, scales: Array) -> Any:
    return _product(x, packed, scales), (packed, scales)


_product.defvjp(_forward, jax_impl.backward)


@functools.partial(jax.jit, static_argnames=("platform",))
def _walk(parts: Array, words: Array, scales: Array, platform: str) -> Array:
    """y (m, block, strip, c, j) of x (two half, m, k / 4), words (k / 16, strip, c, pair, j), scales (g, block, strip, c, j)."""
    m, strips = parts.shape[1], words.shape[1]
    return pl.pallas_call(
        _kernel,
        grid=(m // TILE, strips // STRIPS),
        in_specs=[
            pl.BlockSpec((4, TILE, parts.shape[2]), lambda i, s: (0, i, 0)),
            pl.BlockSpec((words.shape[0], STRIPS, 8, 4, 4), lambda i, s: (0, s, 0, 0, 0)),
            pl.BlockSpec((scales.shape[0], 2, STRIPS, 8, 4), lambda i, s: (0, 0, s, 0, 0)),
        ],
        out_specs=pl.BlockSpec((TILE, 2, STRIPS, 8, 4), lambda i, s: (i, 0, s, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((m, 2, strips, 8, 4), parts.dtype),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2) if platform == "gpu" else None,
    )(parts, words, scales)


def _kernel(parts: Any, words: Any, scales: Any, out: Any) -> None:
    lanes = STRIPS * 32

    def step(g: Any, sums: Any) -> Any:
        tile = words[pl.ds(8 * g, 8), :, :, :, :].transpose(0, 3, 1, 2, 4).reshape(32, lanes)
        found = []
        for block in range(2):
            group = jnp.zeros((TILE, lanes), jnp.float32)
            for part in range(4):
                two, half = divmod(part, 2)
                x = parts[part, :, pl.ds(32 * g, 32)]
                codes = (((tile >> (4 * (4 * two + 2 * block + half))) & 15) - 8).astype(x.dtype)
                group += lax.dot_general(
                    x, codes, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
                )
            found.append(sums[block] + group * scales[g, block, :, :, :].reshape(1, lanes))
        return tuple(found)

    zero = jnp.zeros((TILE, lanes), jnp.float32)
    for block, found in enumerate(lax.fori_loop(0, words.shape[0] // 8, step, (zero, zero))):
        out[:, block, :, :, :] = found.reshape(TILE, STRIPS, 8, 4).astype(out.dtype)


def _sizes(*names: str) -> dict[str, int]:
    return {name: SIZES[name] for name in names}


def exports() -> Iterator[Exported]:
    for kind in ("float32", "float16", "bfloat16"):
        shapes = (((4, 2 * TILE, 64), kind), ((16, 4, 8, 4, 4), "int32"), ((2, 2, 4, 8, 4), "float32"))
        yield Exported(f"walk-{kind}", functools.partial(_walk, platform="gpu"), shapes, ("cuda",))
