"""Units of weights in and out of the format: histogram, code, stream, gaps and positions, and everything back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Int16, Int32, Int64, UInt8
from numba import njit

from common import UserError
from papers.dfloat11.huffman import END, Code, huffman
from papers.dfloat11.kernel.layout import BITS, BYTES, LONGEST, POINTER, blocks

THREADS = 512
"""Threads of a block in the authors' package 0.5.0."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Weights that share a code: the arrays of the format, as :func:`papers.dfloat11.kernel.decode` takes them.

    ``counts`` is the histogram of the exponents; it is not stored.
    """

    stream: UInt8[np.ndarray, " bytes"]
    gaps: UInt8[np.ndarray, " gap_bytes"]
    tables: UInt8[np.ndarray, "tables 256"]
    positions: Int32[np.ndarray, " edges"]
    sign_mantissa: UInt8[np.ndarray, " count"]
    threads: int = THREADS
    code: Code | None = None
    counts: Int64[np.ndarray, " 256"] | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        names = ("stream", "gaps", "tables", "positions", "sign_mantissa")
        return {name: getattr(self, name) for name in names}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def decode(self, **options: Any) -> Int16[np.ndarray, " count"]:
        """The bits of the weights, through PyTorch's compiled loops or the reference; JAX takes :attr:`arrays` itself."""
        import torch

        from papers.dfloat11.kernel import decode

        if options.get("backend") == "reference":
            return decode(**self.arrays, threads=self.threads, **options)
        arrays = {name: torch.from_numpy(np.array(array)) for name, array in self.arrays.items()}
        return decode(**arrays, threads=self.threads, **options).numpy()


def split(bits: Int16[np.ndarray, " count"]) -> tuple[UInt8[np.ndarray, " count"], UInt8[np.ndarray, " count"]]:
    """(exponent, sign and mantissa) of bfloat16 numbers given as int16: w = sign 1 | exponent 8 | mantissa 7."""
    return _split_and_count(bits)[:2]


def encode(bits: Int16[np.ndarray, " count"], name: str = "the unit", threads: int = THREADS) -> Unit:
    """Compress the bits of bfloat16 numbers.

    Raises:
        UserError: an exponent of 240 or more (NaN, infinities, magnitudes from 2^113 on), or a code that needs more than 16
            tables: :func:`fits` says so beforehand.
        ValueError: threads that are no positive multiple of 8, or more numbers than a 31-bit position can count.
    """
    if threads < 8 or threads % 8:
        raise ValueError(f"threads is {threads}; wanted a multiple of 8")
    if bits.size >= 2**31:
        raise ValueError(f"{name} has {bits.size:,} numbers; positions count up to 2^31, cut it into smaller units")
    exponent, sign_mantissa, counts = _split_and_count(bits)
    if large := int(counts[POINTER:].sum()):
        raise UserError(
            f"{name} has {large} numbers with exponent 240 or more (NaN, infinity or a magnitude of 2^113 and above), "
            "which the tables cannot name; repair the weights, or store the unit raw"
        )
    code = huffman(counts)
    try:
        tables = code.tables()
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    stream, gaps, positions = _write(exponent, code, counts, threads)
    return Unit(stream, gaps, tables, positions, sign_mantissa, threads, code, counts)


def fits(bits: Int16[np.ndarray, " count"]) -> bool:
    """Whether the tables can name all exponents."""
    counts = _split_and_count(bits)[2]
    if counts[POINTER:].any():
        return False
    try:
        huffman(counts).tables()
    except ValueError:
        return False
    return True


def size_formula(unit: Unit) -> float:
    """Bits of a weight: 8 + b (1 + 5/64) + 32 b / (64 T) + the tables', b the mean length of a code."""
    assert unit.code is not None and unit.counts is not None
    mean = unit.code.mean_bits(unit.counts)
    return 8 + mean * (1 + 5 / BITS) + 32 * mean / (BITS * unit.threads) + unit.tables.size * 8 / max(unit.sign_mantissa.size, 1)


def _split_and_count(
    bits: Int16[np.ndarray, " count"],
) -> tuple[UInt8[np.ndarray, " count"], UInt8[np.ndarray, " count"], Int64[np.ndarray, " 256"]]:
    exponent, sign_mantissa = np.empty(bits.size, np.uint8), np.empty(bits.size, np.uint8)
    counts = np.zeros((4, 256), np.int64)
    _parts(bits.view(np.uint16), exponent, sign_mantissa, counts)
    return exponent, sign_mantissa, counts.sum(0)


def _write(
    exponent: UInt8[np.ndarray, " count"], code: Code, counts: Int64[np.ndarray, " 256"], threads: int
) -> tuple[UInt8[np.ndarray, " bytes"], UInt8[np.ndarray, " gap_bytes"], Int32[np.ndarray, " edges"]]:
    lengths, words = np.zeros(257, np.int64), np.zeros(257, np.uint64)
    for symbol, (length, word) in code.words.items():
        # Of the end mark no more is written than fills a byte.
        kept = min(length, 7) if symbol == END else length
        lengths[symbol], words[symbol] = kept, word >> length - kept
    total = int(lengths[:256] @ counts)
    size = -(-total // 8)
    grid = blocks(size, threads)
    # One block of room behind the end, so that the loop need not ask.
    stream = np.zeros(size + BYTES, np.uint8)
    # A block in which no code begins has all of them before it.
    gaps, positions = np.zeros(grid * threads + 1, np.uint8), np.full(grid + 1, exponent.size, np.int32)
    _codes(exponent, lengths, words, stream, gaps, positions, threads)
    if total % 8:
        length, word = int(lengths[END]), int(words[END])
        room = size * 8 - total
        stream[size - 1] |= word >> length - room if length >= room else word << room - length
        # The end mark is a code too, and the first of its piece if the last exponent's begins in an earlier one.
        if total // BITS > (total - int(lengths[exponent[-1]])) // BITS:
            gaps[total // BITS] = total % BITS
    bits = (gaps[:-1, None] >> np.arange(4, -1, -1, dtype=np.uint8) & 1).astype(np.uint8)
    return stream[:size], np.packbits(bits), positions


@njit(cache=True, nogil=True)
@no_type_check
def _parts(unsigned, exponent, sign_mantissa, counts):
    """Split and count in one pass; four counters for neighbours, which are often equal and would wait for each other."""
    for i in range(unsigned.size):
        word = unsigned[i]
        exponent[i] = (word >> np.uint16(7)) & np.uint16(0xFF)
        sign_mantissa[i] = (word >> np.uint16(8)) & np.uint16(0x80) | word & np.uint16(0x7F)
        counts[i & 3, exponent[i]] += 1


@njit(cache=True, nogil=True)
@no_type_check
def _codes(exponent, lengths, words, stream, gaps, positions, threads):
    """Write the codes, and note where the first of each piece begins and how many precede each block."""
    place, piece, block = np.int64(0), np.int64(0), np.int64(0)
    byte, held, buffer = np.int64(0), np.int64(0), np.uint64(0)
    for i in range(exponent.size):
        symbol = exponent[i]
        if place >= piece * 64:
            gaps[place // 64] = place - place // 64 * 64
            piece = place // 64 + 1
            if place // 64 >= block * threads:
                positions[place // 64 // threads] = i
                block = place // 64 // threads + 1
        length = lengths[symbol]
        buffer = buffer << np.uint64(length) | words[symbol]
        held += length
        place += length
        if held >= 32:
            held -= 32
            for _ in range(4):
                stream[byte] = (buffer >> np.uint64(held + 24 - 8 * (byte & 3))) & np.uint64(255)
                byte += 1
    while held > 0:
        held -= 8
        stream[byte] = (buffer >> np.uint64(held) if held >= 0 else buffer << np.uint64(-held)) & np.uint64(255)
        byte += 1


assert LONGEST < BITS, "a code begins in every piece"
