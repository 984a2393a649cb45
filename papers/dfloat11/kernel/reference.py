"""The definition: one code after the other, bit by bit, without gaps and positions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16, Int32, UInt8

from .layout import POINTER


def decode(
    stream: UInt8[np.ndarray, " bytes"],
    gaps: UInt8[np.ndarray, " gap_bytes"],
    tables: UInt8[np.ndarray, "tables 256"],
    positions: Int32[np.ndarray, " edges"],
    sign_mantissa: UInt8[np.ndarray, " count"],
    *,
    threads: int = 512,
) -> Int16[np.ndarray, " count"]:
    bits = np.unpackbits(stream).tolist()
    codes = _codes(tables)
    exponents: list[int] = []
    length = code = 0
    for bit in bits:
        length, code = length + 1, code << 1 | bit
        if (length, code) in codes:
            exponents.append(codes[length, code])
            length = code = 0
            if len(exponents) == len(sign_mantissa):
                break
    exponent, rest = np.array(exponents, np.int32), sign_mantissa.astype(np.int32)
    return ((rest & 0x80) << 8 | exponent << 7 | rest & 0x7F).astype(np.uint16).view(np.int16)


def _codes(tables: UInt8[np.ndarray, "tables 256"]) -> dict[tuple[int, int], int]:
    """{(length, word): exponent}. A word of b bits in a table leads to all its 2^(8 - b) entries; where only some of them hold
    an exponent, they fill a place that no word leads to."""
    found: dict[tuple[int, int], int] = {}

    def walk(table: int, prefix: int, depth: int) -> None:
        row = tables[table].tolist()
        for byte, entry in enumerate(row):
            if entry >= POINTER:
                walk(256 - entry, prefix << 8 | byte, depth + 8)
                continue
            free = depth + 8 - int(tables[-1, entry])
            if 0 <= free < 8 and byte % (1 << free) == 0 and row[byte : byte + (1 << free)] == [entry] * (1 << free):
                found[depth + 8 - free, (prefix << 8 | byte) >> free] = entry

    walk(0, 0, 0)
    return found
