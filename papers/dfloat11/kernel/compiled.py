"""One walk through each block, in compiled code; blocks are spread over threads. The positions make a count needless."""

from __future__ import annotations

import functools
from typing import no_type_check

import numpy as np
from numba import njit

from common.threads import in_parts

from .layout import BITS, LONGEST, POINTER

PEEK = 12
"""Bits that are looked up at once: most hold four codes of a trained network's exponents."""
PART = 1 << 17
"""Bytes of the stream that are worth a thread."""


def decode(
    stream: np.ndarray,
    gaps: np.ndarray,
    tables: np.ndarray,
    positions: np.ndarray,
    sign_mantissa: np.ndarray,
    threads: int,
    workers: int,
) -> np.ndarray:
    out = np.empty(sign_mantissa.size, np.int16)
    grid = positions.size - 1
    symbols, counts, lengths = _peek(tables)
    work = functools.partial(_decode, stream, gaps, tables, symbols, counts, lengths, positions, sign_mantissa, out, threads)
    in_parts(work, grid, min(workers, grid, stream.size // PART), workers)
    return out


@njit(cache=True, nogil=True)
@no_type_check
def _look(window, tables):
    """(exponent, length) of the code that the 32 bits begin with; wrong bits give some exponent, never an endless walk."""
    entry = np.int64(tables[0, window >> np.uint64(24)])
    for level in range(1, 4):
        if entry < POINTER:
            break
        entry = np.int64(tables[min(256 - entry, tables.shape[0] - 2), (window >> np.uint64(24 - 8 * level)) & np.uint64(255)])
    return entry, min(max(np.int64(tables[-1, entry]), 1), LONGEST)


@njit(cache=True, nogil=True)
@no_type_check
def _peek(tables):
    """For each ``PEEK`` bits the exponents of the whole codes in it (at most four, one byte each), how many, and their bits."""
    symbols, counts, lengths = np.zeros(1 << PEEK, np.uint32), np.zeros(1 << PEEK, np.uint8), np.zeros(1 << PEEK, np.uint8)
    for bits in range(1 << PEEK):
        used = 0
        while counts[bits] < 4:
            unknown = np.uint64(32 - PEEK + used)
            window = (np.uint64(bits) << unknown) & np.uint64(0xFFFFFFFF)
            entry, length = _look(window, tables)
            # A word that is cut off leads elsewhere when the bits behind it are ones.
            other, _ = _look(window | ((np.uint64(1) << unknown) - np.uint64(1)), tables)
            if entry >= POINTER or entry != other or used + length > PEEK:
                break
            symbols[bits] |= np.uint32(entry) << np.uint32(8 * counts[bits])
            counts[bits] += 1
            used += length
        lengths[bits] = used
    return symbols, counts, lengths


@njit(cache=True, nogil=True)
@no_type_check
def _decode(stream, gaps, tables, symbols, counts, lengths, positions, sign_mantissa, out, threads, first, last):
    size = stream.size
    for block in range(first, last):
        i, end = positions[block], positions[block + 1]
        place = 5 * block * threads
        pair = np.int64(gaps[place >> 3]) << 8
        if (place >> 3) + 1 < gaps.size:
            pair |= np.int64(gaps[(place >> 3) + 1])
        bit = np.int64(block) * threads * BITS + ((pair >> (11 - (place & 7))) & 31)
        byte, held, buffer = bit >> 3, np.int64(0), np.uint64(0)
        skip = bit & 7
        while i < end:
            while held <= 56:  # at least 32 bits are ahead, zeros behind the end
                next_byte = np.uint64(stream[byte]) if byte < size else np.uint64(0)
                buffer |= next_byte << np.uint64(56 - held)
                byte += 1
                held += 8
            if skip:
                buffer <<= np.uint64(skip)
                held -= skip
                skip = 0
                continue
            peek = buffer >> np.uint64(64 - PEEK)
            count = counts[peek]
            if count and i + count <= end:
                found = symbols[peek]
                for _ in range(count):
                    rest = np.int32(sign_mantissa[i])
                    out[i] = np.int16((rest & 0x80) << 8 | np.int32(found & np.uint32(255)) << 7 | rest & 0x7F)
                    found >>= np.uint32(8)
                    i += 1
                length = np.int64(lengths[peek])
            else:
                entry, length = _look(buffer >> np.uint64(32), tables)
                rest = np.int32(sign_mantissa[i])
                out[i] = np.int16((rest & 0x80) << 8 | np.int32(entry) << 7 | rest & 0x7F)
                i += 1
            buffer <<= np.uint64(length)
            held -= length
