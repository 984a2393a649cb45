"""Pallas: a program takes whole blocks and walks over the code book, comparing or selecting: no gather, any platform.

A Triton GPU divides in a way that may miss the nearest float32 by one unit; the other platforms divide exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Float32, UInt8

from common.ops import Exported

from .jax_impl import in_blocks, middles

ELEMENTS = 4096
"""Of one program."""


def quantize_blockwise(
    x: Float[Array, "*shape"], code: Float32[Array, " size"], *, block: int = 64
) -> tuple[UInt8[Array, " count"], Float32[Array, " blocks"]]:
    rows = in_blocks(x.astype(jnp.float32).reshape(-1), block)
    if not rows.size:
        return jnp.zeros(0, jnp.uint8), jnp.zeros(0, jnp.float32)
    indices, absmax = _quantize(_whole(rows), middles(code), jax.default_backend())
    return indices.reshape(-1)[: x.size].astype(jnp.uint8), absmax[: len(rows), 0]


def dequantize_blockwise(
    indices: UInt8[Array, " count"],
    absmax: Float32[Array, " blocks"],
    code: Float32[Array, " size"],
    *,
    block: int = 64,
) -> Float32[Array, " count"]:
    rows = in_blocks(indices, block).astype(jnp.int32)
    if not rows.size:
        return jnp.zeros(0, jnp.float32)
    return _dequantize(_whole(rows), _whole(absmax[:, None], block), code, jax.default_backend()).reshape(-1)[: indices.size]


@functools.partial(jax.jit, static_argnums=2)
def _quantize(rows: Array, borders: Array, platform: str) -> tuple[Array, Array]:
    tile, single, table = _specs(rows.shape[1], platform)
    return pl.pallas_call(
        _quantize_kernel,
        grid=(rows.size // ELEMENTS,),
        in_specs=[tile, table],
        out_specs=[tile, single],
        out_shape=[jax.ShapeDtypeStruct(rows.shape, jnp.int32), jax.ShapeDtypeStruct((rows.shape[0], 1), jnp.float32)],
        **_options(platform),
    )(rows, borders)


def _quantize_kernel(x: Any, borders: Any, indices: Any, absmax: Any) -> None:
    values = x[...]
    scale = jnp.max(jnp.where(values == values, jnp.abs(values), jnp.inf), axis=1, keepdims=True)
    scaled = values * (1.0 / jnp.maximum(scale, 1.1754943508222875e-38))

    def step(j: Any, found: Any) -> Any:
        return found + (scaled > borders[j]).astype(jnp.int32)

    indices[...] = lax.fori_loop(0, borders.shape[0], step, jnp.zeros(values.shape, jnp.int32))
    absmax[...] = scale


@functools.partial(jax.jit, static_argnums=3)
def _dequantize(rows: Array, absmax: Array, code: Array, platform: str) -> Array:
    tile, single, table = _specs(rows.shape[1], platform)
    return pl.pallas_call(
        _dequantize_kernel,
        grid=(rows.size // ELEMENTS,),
        in_specs=[tile, single, table],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        **_options(platform),
    )(rows, absmax, code)


def _dequantize_kernel(indices: Any, absmax: Any, code: Any, out: Any) -> None:
    found = indices[...]

    def step(j: Any, value: Any) -> Any:
        return jnp.where(found == j, code[j], value)

    out[...] = lax.fori_loop(0, code.shape[0], step, jnp.zeros(found.shape, jnp.float32)) * absmax[...]


def _whole(rows: Array, block: int | None = None) -> Array:
    """Filled with rows of zeros up to whole programs."""
    each = ELEMENTS // (block or rows.shape[1])
    return jnp.pad(rows, ((0, -rows.shape[0] % each), (0, 0)))


def _specs(block: int, platform: str) -> tuple[Any, Any, Any]:
    tile = pl.BlockSpec((ELEMENTS // block, block), lambda i: (i, 0))
    # A TPU reads single numbers from its scalar memory.
    table = pl.BlockSpec(memory_space=pltpu.SMEM) if platform == "tpu" else pl.BlockSpec()
    return tile, pl.BlockSpec((ELEMENTS // block, 1), lambda i: (i, 0)), table


def _options(platform: str) -> dict[str, Any]:
    parameters = plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None
    return {"interpret": platform == "cpu", "compiler_params": parameters}


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for block, size in ((64, 16), (256, 256)):
            rows, blocks = (4 * ELEMENTS // block, block), (4 * ELEMENTS // block, 1)
            quantize, dequantize = (functools.partial(f, platform=platform) for f in (_quantize, _dequantize))
            yield Exported(f"quantize-{block}-{name}", quantize, ((rows, "float32"), ((size - 1,), "float32")), (name,))
            shapes = ((rows, "int32"), (blocks, "float32"), ((size,), "float32"))
            yield Exported(f"dequantize-{block}-{name}", dequantize, shapes, (name,))
