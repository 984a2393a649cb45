"""Triton: one program is one block of the format, one lane one thread; tables are gathered from the cache.

The paper's kernel collects a block's numbers in shared memory and writes them in order. Triton has no shared memory that can
be indexed, so each lane writes its own run; runs of neighbouring lanes lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int16, Int32, UInt8
from torch import Tensor

from common.ops import Shipped

from .layout import BITS, BYTES, POINTER


def decode(
    stream: UInt8[Tensor, " bytes"],
    gaps: UInt8[Tensor, " gap_bytes"],
    tables: UInt8[Tensor, "tables 256"],
    positions: Int32[Tensor, " edges"],
    sign_mantissa: UInt8[Tensor, " count"],
    *,
    threads: int = 512,
    variant: str | None = None,
) -> Int16[Tensor, " count"]:
    if variant not in (None, "parallel"):
        raise ValueError(f"decode: backend 'triton' has the variant 'parallel', not {variant!r}")
    if threads & (threads - 1):
        raise ValueError(f"decode: backend 'triton' wants threads to be a power of two, not {threads}; use backend='torch'")
    out = torch.empty(sign_mantissa.numel(), dtype=torch.int16, device=stream.device)
    grid = positions.numel() - 1
    if out.numel():
        arrays = (x.contiguous() for x in (stream, gaps, tables, positions, sign_mantissa))
        decode_kernel[(grid,)](*arrays, out, stream.numel(), len(tables) - 1, threads, BYTES, BITS, POINTER, **_options(threads))
    return out


@triton.jit
@no_type_check
def decode_kernel(
    stream, gaps, tables, positions, sign_mantissa, out, size, count,
    THREADS: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr, POINTER: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    thread = block * THREADS + tl.arange(0, THREADS)
    first = thread * BYTES
    # The gap begins at bit 5 t; it ends in the same byte or the next.
    place = thread * 5
    pair = tl.load(gaps + (place >> 3)).to(tl.int32) << 8
    crosses = (place & 7) > 3
    pair |= tl.load(gaps + (place >> 3) + 1, mask=crosses, other=0).to(tl.int32)
    gap = (pair >> (11 - (place & 7))) & 31

    bit, counts = gap, tl.zeros((THREADS,), tl.int32)
    while tl.min(bit) < BITS:
        _, length = _look(stream, size, first, bit, tables, count, POINTER)
        counts += (bit < BITS).to(tl.int32)
        bit += tl.where(bit < BITS, length, 0)

    at = tl.load(positions + block) + tl.cumsum(counts, 0) - counts
    end = tl.load(positions + block + 1)
    bit = gap
    while tl.min(bit) < BITS:
        entry, length = _look(stream, size, first, bit, tables, count, POINTER)
        inside = (bit < BITS) & (at < end)  # padding decodes to something behind the end
        rest = tl.load(sign_mantissa + at, mask=inside, other=0).to(tl.int32)
        tl.store(out + at, (((rest & 0x80) << 8) | (entry << 7) | (rest & 0x7F)).to(tl.int16), mask=inside)
        at += (bit < BITS).to(tl.int32)
        bit += tl.where(bit < BITS, length, 0)


@triton.jit
@no_type_check
def _look(stream, size, first, bit, tables, count, POINTER: tl.constexpr):
    """(exponent, length) of the code at a bit of each thread's piece; zeros lie behind the stream."""
    byte, shift = first + (bit >> 3), (bit & 7).to(tl.uint32)
    window = tl.zeros(bit.shape, tl.uint32)
    for ahead in tl.static_range(4):
        window |= tl.load(stream + byte + ahead, mask=byte + ahead < size, other=0).to(tl.uint32) << (24 - 8 * ahead)
    next_byte = tl.load(stream + byte + 4, mask=byte + 4 < size, other=0).to(tl.uint32)
    window = (window << shift) | (next_byte >> (8 - shift))
    entry = tl.load(tables + (window >> 24)).to(tl.int32)
    for level in tl.static_range(1, 4):
        deeper = entry >= POINTER
        table = tl.minimum(256 - entry, count - 1)
        found = tl.load(tables + table * 256 + ((window >> (24 - 8 * level)) & 255).to(tl.int32), mask=deeper, other=0)
        entry = tl.where(deeper, found.to(tl.int32), entry)
    length = tl.load(tables + count * 256 + entry).to(tl.int32)
    return entry, tl.maximum(length, 1)


def _options(threads: int) -> dict[str, int]:
    return {"num_warps": max(1, min(8, threads // 32)), "num_stages": 1}


def shipped() -> Iterator[Shipped]:
    signature = {
        "stream": "*u8", "gaps": "*u8", "tables": "*u8", "positions": "*i32", "sign_mantissa": "*u8", "out": "*i16",
        "size": "i32", "count": "i32", "THREADS": "constexpr", "BYTES": "constexpr", "BITS": "constexpr", "POINTER": "constexpr",
    }  # fmt: skip
    for threads in (512, 256):
        constants = {"THREADS": threads, "BYTES": BYTES, "BITS": BITS, "POINTER": POINTER}
        yield Shipped(f"decode-{threads}", decode_kernel, signature, constants, _options(threads))
