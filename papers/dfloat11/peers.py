"""What DFloat11 is held against: a loop over symbols, a code of fixed length, and packages that compress the same bytes."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int16, UInt8

from common import meter
from common.threads import torch_threads
from papers.dfloat11.codec import Unit, encode, split
from papers.dfloat11.huffman import END, Code


def encode_by_symbol(
    exponent: UInt8[np.ndarray, " count"], unit: Unit
) -> tuple[bytes, UInt8[np.ndarray, " gap_bytes"], list[int]]:
    """Stream, gaps and positions as a loop writes them that takes one Python step a symbol, with a whole number as buffer."""
    assert unit.code is not None
    words, out, gaps, positions = unit.code.words, bytearray(), list[int](), list[int]()
    buffer = held = place = 0
    for count, symbol in enumerate([*exponent.tolist(), END]):
        if symbol == END and not held:
            break
        if place >> 6 >= len(gaps):
            gaps.append(place & 63)
        if place // (64 * unit.threads) >= len(positions):
            positions.append(count)
        length, word = words[symbol]
        buffer, held, place = buffer << length | word, held + length, place + length
        if symbol == END:
            out.append(buffer >> held - 8 if held >= 8 else buffer << 8 - held)
            break
        while held >= 8:
            held -= 8
            out.append(buffer >> held)
            buffer &= (1 << held) - 1
    grid = -(-len(out) // (8 * unit.threads))
    gaps += [0] * (grid * unit.threads - len(gaps))
    bits = [gap >> shift & 1 for gap in gaps for shift in (4, 3, 2, 1, 0)]
    return bytes(out), np.packbits(np.array(bits, np.uint8)), [*positions, exponent.size]


def fixed(bits: Int16[np.ndarray, " count"], threads: int) -> Unit:
    """A unit whose exponents all have words of 8 bits: the mechanism switched off, the rest of the format kept."""
    exponent, _ = split(bits)
    unit = encode(bits, threads=threads)
    counts = np.bincount(exponent, minlength=256)
    words = {int(symbol): (8, int(symbol)) for symbol in np.flatnonzero(counts)}
    tables = np.zeros((2, 256), np.uint8)
    tables[0], tables[1] = np.arange(256), 8
    grid = -(-exponent.size // (8 * threads))
    positions = np.append(np.arange(grid) * 8 * threads, exponent.size).astype(np.int32)
    gaps = np.zeros(grid * threads * 5 // 8, np.uint8)
    return dataclasses.replace(
        unit, stream=exponent, gaps=gaps, tables=tables, positions=positions, code=Code({**words, END: (8, 255)}), counts=counts
    )


def table(bits: Int16[np.ndarray, " count"], unit: Unit, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Ratio and megabytes of bfloat16 a second, one row for each way that is installed; all take turns on the same bytes."""
    import torch

    raw = bits.tobytes()
    used = torch.get_num_threads()
    ways: dict[str, tuple[float, Callable[[], Any], Callable[[], Any]]] = {}

    def ours(count: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        def with_threads(work: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> None:
                with torch_threads(count):
                    work()

            return call

        return with_threads(lambda: encode(bits, threads=threads)), with_threads(unit.decode)

    for count in sorted({1, used}):
        ways[f"dfloat11, {count} thread{'s' * (count > 1)}"] = (unit.nbytes / bits.nbytes, *ours(count))
    if importlib.util.find_spec("zipnn"):
        from zipnn import ZipNN

        codec = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
        # It writes into what it is given.
        small = bytes(codec.compress(bytearray(raw)))
        ways["zipnn"] = (
            len(small) / len(raw),
            lambda: codec.compress(bytearray(raw)),
            lambda: codec.decompress(bytearray(small)),
        )
    if importlib.util.find_spec("zstandard"):
        import zstandard

        packed = zstandard.ZstdCompressor(level=3).compress(raw)
        ways["zstandard"] = (
            len(packed) / len(raw),
            lambda: zstandard.ZstdCompressor(level=3).compress(raw),
            lambda: zstandard.ZstdDecompressor().decompress(packed),
        )
    calls = {f"{way} {what}": call for way, (_, *both) in ways.items() for what, call in zip("ed", both, strict=True)}
    seconds = meter.median_seconds(calls, repeats=repeats)
    return [
        {
            "what": way,
            "ratio": ratio,
            "encode_mb_s": len(raw) / 1e6 / seconds[f"{way} e"],
            "decode_mb_s": len(raw) / 1e6 / seconds[f"{way} d"],
        }
        for way, (ratio, *_) in ways.items()
    ]
