"""Pallas: a tile of packed words a program, whose places in memory are computed from its numbers. For GPUs: a TPU's memory is
not addressed by the byte."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import UInt8

from common.ops import Exported

TILE = 1024
"""Words of a program; a power of two, as arrays in Triton must have."""

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def strided_pack(
    source: UInt8[Array, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> UInt8[Array, " packed"]:
    if 0 in counts:
        return jnp.zeros(0, jnp.uint8)
    return _pack(source, start=start, counts=counts, strides=strides, platform=jax.default_backend())


def strided_unpack(
    packed: UInt8[Array, " packed"],
    target: UInt8[Array, " bytes"],
    *,
    start: int,
    counts: tuple[int, ...],
    strides: tuple[int, ...],
) -> UInt8[Array, " bytes"]:
    if 0 in counts:
        return target
    return _unpack(packed, target, start=start, counts=counts, strides=strides, platform=jax.default_backend())


_LOOPS = ("start", "counts", "strides", "platform")


@functools.partial(jax.jit, static_argnames=_LOOPS)
def _pack(source: Array, *, start: int, counts: tuple[int, ...], strides: tuple[int, ...], platform: str) -> Array:
    width, loops = _in_words(start, counts, strides)
    size = math.prod(counts) // width
    packed = pl.pallas_call(
        functools.partial(_pack_kernel, loops, size),
        grid=(-(-size // TILE),),
        out_shape=jax.ShapeDtypeStruct((size,), _WORDS[width]),
        in_specs=[pl.BlockSpec()],
        out_specs=pl.BlockSpec(),
        **_options(platform),
    )(_words(source, width))
    return lax.bitcast_convert_type(packed, jnp.uint8).reshape(-1)


@functools.partial(jax.jit, static_argnames=_LOOPS)
def _unpack(
    packed: Array, target: Array, *, start: int, counts: tuple[int, ...], strides: tuple[int, ...], platform: str
) -> Array:
    width, loops = _in_words(start, counts, strides)
    size, words = math.prod(counts) // width, _words(target, width)
    written = pl.pallas_call(
        functools.partial(_unpack_kernel, loops, size),
        grid=(-(-size // TILE),),
        out_shape=jax.ShapeDtypeStruct(words.shape, words.dtype),
        in_specs=[pl.BlockSpec(), pl.BlockSpec()],
        out_specs=pl.BlockSpec(),
        input_output_aliases={1: 0},
        **_options(platform),
    )(_words(packed, width), words)
    # What is no whole word at the end of the target belongs to no block.
    return jnp.concatenate([lax.bitcast_convert_type(written, jnp.uint8).reshape(-1), target[words.size * width :]])


def _pack_kernel(loops: Any, size: int, memory: Any, packed: Any) -> None:
    index, at = _places(loops, size)
    plt.store(packed.at[index], plt.load(memory.at[at]))


def _unpack_kernel(loops: Any, size: int, packed: Any, _: Any, memory: Any) -> None:
    index, at = _places(loops, size)
    plt.store(memory.at[at], plt.load(packed.at[index]))


def _places(loops: Any, size: int) -> tuple[Array, Array]:
    """(packed word, its word in memory) of a program's words; those behind the end copy the last word again."""
    start, counts, strides = loops
    index = jnp.minimum(pl.program_id(0) * TILE + lax.iota(jnp.int32, TILE), size - 1)
    at, rest = jnp.full((TILE,), start, jnp.int32), index
    for count, stride in zip(counts, strides, strict=True):
        at, rest = at + rest % count * stride, rest // count
    return index, at


def _in_words(start: int, counts: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, Any]:
    width = math.gcd(4, start, counts[0], *strides[1:])
    return width, (
        start // width,
        (counts[0] // width, *counts[1:]),
        (1, *(stride // width for stride in strides[1:])),
    )


def _words(array: Array, width: int) -> Array:
    whole = array[: array.size // width * width]
    return whole if width == 1 else lax.bitcast_convert_type(whole.reshape(-1, width), _WORDS[width])


def _options(platform: str) -> dict[str, Any]:
    return {
        "interpret": platform == "cpu",
        "compiler_params": None if platform == "cpu" else plt.CompilerParams(num_warps=4, num_stages=1),
    }


def exports() -> Iterator[Exported]:
    loops = {"start": 64, "counts": (32, 100, 7), "strides": (1, 512, 65536), "platform": "gpu"}
    size, memory = 32 * 100 * 7, 64 + 7 * 65536
    shapes = (((size,), "uint8"), ((memory,), "uint8"))
    yield Exported("pack", functools.partial(_pack, **loops), shapes[1:], ("cuda", "rocm"))
    yield Exported("unpack", functools.partial(_unpack, **loops), shapes, ("cuda", "rocm"))
    odd = {**loops, "start": 3, "counts": (5, 100, 7)}
    yield Exported("pack-bytes", functools.partial(_pack, **odd), shapes[1:], ("cuda", "rocm"))
