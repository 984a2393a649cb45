"""Pallas: one program is one block of the format, as in the Triton kernel; it lowers for GPUs, whose memory can be gathered from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Int16, Int32, UInt8

from common.ops import Exported

from .layout import BITS, BYTES, POINTER


def decode(
    stream: UInt8[Array, " bytes"],
    gaps: UInt8[Array, " gap_bytes"],
    tables: UInt8[Array, "tables 256"],
    positions: Int32[Array, " edges"],
    sign_mantissa: UInt8[Array, " count"],
    *,
    threads: int = 512,
    variant: str | None = None,
) -> Int16[Array, " count"]:
    if variant not in (None, "parallel"):
        raise ValueError(f"decode: backend 'pallas' has the variant 'parallel', not {variant!r}")
    if threads & (threads - 1):
        raise ValueError(f"decode: backend 'pallas' wants threads to be a power of two, not {threads}; use backend='jax'")
    if not sign_mantissa.size:
        return jnp.zeros(0, jnp.int16)
    return _decode(stream, gaps, tables, positions, sign_mantissa, threads=threads, platform=jax.default_backend())


@functools.partial(jax.jit, static_argnames=("threads", "platform"))
def _decode(
    stream: Array, gaps: Array, tables: Array, positions: Array, sign_mantissa: Array, threads: int, platform: str
) -> Array:
    grid = positions.size - 1
    # Zeros behind the stream and the gaps spare the kernel its masks.
    stream = jnp.pad(stream, (0, grid * threads * BYTES + BYTES - stream.size))
    whole = pl.BlockSpec(memory_space=pl.ANY) if platform == "tpu" else pl.BlockSpec()
    return pl.pallas_call(
        functools.partial(_kernel, threads, len(tables) - 1),
        grid=(grid,),
        in_specs=[whole] * 5,
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct(sign_mantissa.shape, jnp.int16),
        interpret=platform == "cpu",
        compiler_params=None if platform == "cpu" else plt.CompilerParams(num_warps=max(1, min(8, threads // 32)), num_stages=1),
    )(stream, jnp.pad(gaps, (0, 1)), tables.reshape(-1), positions, sign_mantissa)


def _kernel(threads: int, count: int, stream: Any, gaps: Any, tables: Any, positions: Any, sign_mantissa: Any, out: Any) -> None:
    block = pl.program_id(0)
    thread = block * threads + lax.iota(jnp.int32, threads)
    first, place = thread * BYTES, thread * 5
    pair = _gather(gaps, place >> 3) << 8 | _gather(gaps, (place >> 3) + 1)
    gap = pair >> (11 - (place & 7)) & 31

    def look(bit: Array) -> tuple[Array, Array]:
        byte, shift = first + (jnp.minimum(bit, BITS - 1) >> 3), (bit & 7).astype(jnp.uint32)
        four: Any = jnp.zeros((threads,), jnp.uint32)
        for ahead in range(4):
            four = four | _gather(stream, byte + ahead).astype(jnp.uint32) << 8 * (3 - ahead)
        window = four << shift | _gather(stream, byte + 4).astype(jnp.uint32) >> 8 - shift
        entry = _gather(tables, (window >> 24).astype(jnp.int32))
        for level in range(1, min(4, count)):
            table = jnp.clip(256 - entry, 0, count - 1)
            deeper = _gather(tables, table * 256 + (window >> 24 - 8 * level & 255).astype(jnp.int32))
            entry = jnp.where(entry >= POINTER, deeper, entry)
        return entry, jnp.maximum(_gather(tables, count * 256 + entry), 1)

    def count_one(state: tuple[Array, Array]) -> tuple[Array, Array]:
        bit, counts = state
        _, length = look(bit)
        inside = bit < BITS
        return bit + jnp.where(inside, length, 0), counts + inside.astype(jnp.int32)

    def within(state: Any) -> Array:
        return jnp.min(state[0]) < BITS

    _, counts = lax.while_loop(within, count_one, (gap, jnp.zeros((threads,), jnp.int32)))
    at, end = positions[block] + jnp.cumsum(counts) - counts, positions[block + 1]

    def write_one(state: tuple[Array, Array]) -> tuple[Array, Array]:
        bit, at = state
        entry, length = look(bit)
        inside = bit < BITS
        written = inside & (at < end)  # padding decodes to something behind the end
        rest = plt.load(sign_mantissa.at[at], mask=written, other=0).astype(jnp.int32)
        value = (rest & 0x80) << 8 | entry << 7 | rest & 0x7F
        plt.store(out.at[at], value.astype(jnp.int16), mask=written)
        return bit + jnp.where(inside, length, 0), at + inside.astype(jnp.int32)

    lax.while_loop(within, write_one, (gap, at))


def _gather(array: Any, index: Array) -> Array:
    return plt.load(array.at[index]).astype(jnp.int32)


def exports() -> Iterator[Exported]:
    for threads in (512, 256):
        shapes = (
            ((9000,), "uint8"),
            ((3 * threads * 5 // 8,), "uint8"),
            ((4, 256), "uint8"),
            ((4,), "int32"),
            ((20000,), "uint8"),
        )
        size = 2 * threads * BYTES + 808
        shapes = (((size,), "uint8"), *shapes[1:])
        yield Exported(f"decode-{threads}", functools.partial(_decode, threads=threads, platform="gpu"), shapes, ("cuda", "rocm"))
