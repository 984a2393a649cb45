"""Pallas: a program takes whole blocks and walks over the code books, comparing and selecting: no gather, any platform."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jaxtyping import Float, Float32, UInt8

from common.ops import Exported

from .jax_impl import blocks, corrections
from .tables import STEPS, ZERO, tables

ROWS = 8
"""Blocks of one program: the smallest tile of a TPU."""


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
    count, rows = gradient.size, mean_scale.size
    correct1, correct2 = corrections(step, beta1, beta2)
    numbers = jnp.stack([*map(jnp.float32, (beta1, 1 - beta1, beta2, 1 - beta2, epsilon)), correct1, correct2])
    codes = (_whole(blocks(each, block, fill).astype(jnp.int32)) for each, fill in ((mean, ZERO), (square, 0)))
    scales = (_whole(each.astype(jnp.float32)[:, None]) for each in (mean_scale, square_scale))
    g = _whole(blocks(gradient.astype(jnp.float32), block))
    if not rows:
        return jnp.zeros(0), mean, mean_scale, square, square_scale
    books = map(jnp.asarray, tables())
    direction, m, m_scale, v, v_scale = _step(g, *codes, *scales, *books, numbers, grid, jax.default_backend())
    m, v = (each.reshape(-1)[:count].astype(jnp.uint8) for each in (m, v))
    return direction.reshape(-1)[:count], m, m_scale[:rows, 0], v, v_scale[:rows, 0]


@functools.partial(jax.jit, static_argnums=(10, 11))
def _step(
    g: Array, mean: Array, square: Array, mean_scale: Array, square_scale: Array, signed: Array, unsigned: Array,
    m_edges: Array, v_edges: Array, numbers: Array, grid: bool, platform: str,
) -> Any:  # fmt: skip
    tile, single = pl.BlockSpec((ROWS, g.shape[1]), lambda i: (i, 0)), pl.BlockSpec((ROWS, 1), lambda i: (i, 0))
    # A TPU reads single numbers from its scalar memory.
    table = pl.BlockSpec(memory_space=pltpu.SMEM) if platform == "tpu" else pl.BlockSpec()

    def like(x: Array, kind: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, kind)

    return pl.pallas_call(
        functools.partial(_kernel, grid),
        grid=(g.shape[0] // ROWS,),
        in_specs=[tile, tile, tile, single, single, *[table] * 5],
        out_specs=[tile, tile, single, tile, single],
        out_shape=[like(g, jnp.float32), *[like(g, jnp.int32), like(mean_scale, jnp.float32)] * 2],
        interpret=platform == "cpu",
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1) if platform == "gpu" else None,
    )(g, mean, square, mean_scale, square_scale, signed, unsigned, m_edges, v_edges, numbers)


def _kernel(
    grid: bool, g_ref: Any, mean: Any, square: Any, mean_scale: Any, square_scale: Any, signed: Any, unsigned: Any,
    m_edges: Any, v_edges: Any, numbers: Any, direction: Any, m_out: Any, m_scale: Any, v_out: Any, v_scale: Any,
) -> None:  # fmt: skip
    g = g_ref[...]
    m = numbers[0] * (_decode(mean[...], signed) * mean_scale[...]) + numbers[1] * g
    v = numbers[2] * (_decode(square[...], unsigned) * square_scale[...]) + numbers[3] * g * g
    direction[...] = m / numbers[5] / (jnp.sqrt(v) / numbers[6] + numbers[4])
    m_scale[...], v_scale[...] = (jnp.max(jnp.abs(each), axis=1, keepdims=True) for each in (m, v))
    m_out[...], v_out[...] = _encode(m, m_scale[...], m_edges, grid), _encode(v, v_scale[...], v_edges, grid)


def _decode(codes: Array, book: Any) -> Array:
    return lax.fori_loop(0, 256, lambda j, value: jnp.where(codes == j, book[j], value), jnp.zeros(codes.shape, jnp.float32))


def _encode(x: Array, scale: Array, edges: Any, grid: bool) -> Array:
    quotient = x * (1.0 / jnp.maximum(scale, 1.1754943508222875e-38))
    if grid:
        quotient = jnp.floor((quotient + 1) * 0.5 * STEPS + 0.5) * (2 / STEPS) - 1

    def count(j: Any, below: Array) -> Array:
        return below + (quotient > edges[j]).astype(jnp.int32)

    codes = lax.fori_loop(0, 255, count, jnp.zeros(x.shape, jnp.int32))
    return jnp.where(scale > 0, codes, 0) if grid else codes


def _whole(rows: Array) -> Array:
    """Filled with rows of zeros up to whole programs."""
    return jnp.pad(rows, ((0, -rows.shape[0] % ROWS), (0, 0)))


def exports() -> Iterator[Exported]:
    """The kernel for both platforms, with and without the grid."""
    rows, single = ((2 * ROWS, 256), "float32"), ((2 * ROWS, 1), "float32")
    codes = ((2 * ROWS, 256), "int32")
    books = (((256,), "float32"), ((256,), "float32"), ((255,), "float32"), ((255,), "float32"), ((7,), "float32"))
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for grid in (False, True):
            function = functools.partial(_step, grid=grid, platform=platform)
            yield Exported(f"{name}{'-grid' if grid else ''}", function, (rows, codes, codes, single, single, *books), (name,))
