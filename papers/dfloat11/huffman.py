"""Prefix codes of bfloat16 exponents with at most 32 bits, and the tables that decode them.

The codes are those of the authors' package, so that streams can be exchanged: a Huffman tree over the exponents that occur and
an end mark of count 1 whose first bits fill up the last byte.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from papers.dfloat11.kernel.layout import LONGEST, POINTER, TABLES

END = 256
"""The end mark, as a symbol behind the exponents."""


@dataclass(frozen=True)
class Code:
    """A prefix code.

    Attributes:
        words: symbol -> (length, code word); the symbols are exponents and :data:`END`.
        shortened: how many of the rarest symbols count as 1 so that no word is longer than 32 bits.
    """

    words: dict[int, tuple[int, int]]
    shortened: int = 0

    def mean_bits(self, counts: Int64[np.ndarray, " 256"]) -> float:
        """Bits of a symbol on average; 0 for no symbols."""
        total = sum(int(counts[symbol]) * length for symbol, (length, _) in self.words.items() if symbol != END)
        return total / max(int(counts.sum()), 1)

    def tables(self) -> UInt8[np.ndarray, "tables 256"]:
        """Look-up tables of 8 bits each, and the lengths as last row (arXiv 2504.11651, section 2.3.1).

        Entries that no exponent's word leads to repeat the one before, as in the authors' package.

        Raises:
            ValueError: an exponent of 240 or more, whose place the pointers take, or more than 16 tables.
        """
        words = [(symbol, length, word) for symbol, (length, word) in self.words.items() if symbol != END]
        if any(symbol >= POINTER for symbol, _, _ in words):
            raise ValueError("an exponent of 240 or more has no place in the tables; such a unit is stored raw")
        whole = [(symbol, format(word, f"0{length}b")) for symbol, length, word in words]
        prefixes = [""]
        for _, bits in whole:
            if (prefix := bits[: (len(bits) - 1) // 8 * 8]) not in prefixes:
                prefixes.append(prefix)
        # A table between two others that no word ends in.
        prefixes += sorted({prefix[:depth] for prefix in prefixes for depth in range(8, len(prefix), 8)} - set(prefixes))
        prefixes.sort(key=len)
        if len(prefixes) > TABLES:
            raise ValueError(f"the code needs {len(prefixes)} tables, of which {TABLES} can be named; such a unit is stored raw")
        tables, last = np.zeros((len(prefixes) + 1, 256), np.uint8), 0
        for place, prefix in enumerate(prefixes):
            entries: dict[int, int] = {}
            for symbol, bits in whole:
                if not bits.startswith(prefix) or len(bits) == len(prefix):
                    continue
                rest = bits[len(prefix) :]
                pointer = len(rest) > 8
                entries[int(rest[:8].ljust(8, "0"), 2)] = 256 - prefixes.index(prefix + rest[:8]) if pointer else symbol
            for byte in range(256):
                last = entries.get(byte, last)
                tables[place, byte] = last
        for symbol, length, _ in words:
            tables[-1, symbol] = length
        return tables


def huffman(counts: Int64[np.ndarray, " 256"]) -> Code:
    """The code of a histogram of exponents: Huffman's, and if a word has more than 32 bits, that of a changed histogram in
    which the k rarest exponents count as 1, with the least k = 2, 3, ... that suffices.

    Ties are broken as a binary heap of (count, symbols) breaks them, the end mark before every exponent.
    """
    present = {int(symbol): int(counts[symbol]) for symbol in np.flatnonzero(counts)}
    words = _tree(present)
    rare = 1
    while max(length for length, _ in words.values()) > LONGEST:
        rare += 1
        places = np.argpartition(np.array(list(present.values())), rare)[:rare]
        keys = [list(present)[place] for place in places]
        words = _tree({**present, **dict.fromkeys(keys, 1)})
    return Code(words, 0 if rare == 1 else rare)


def package_merge(counts: Int64[np.ndarray, " 256"], longest: int = LONGEST) -> dict[int, int]:
    """Length of each exponent's word in the best prefix code without words longer than ``longest``, end mark included
    (Larmore and Hirschberg 1990): what the heuristic is held against."""
    leaves = sorted([(1, (END,)), *((int(counts[symbol]), (int(symbol),)) for symbol in np.flatnonzero(counts))])
    if len(leaves) > 1 << longest:
        raise ValueError(f"{len(leaves)} symbols have no prefix code of at most {longest} bits")
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(longest):
        merged = sorted([*leaves, *packages])
        packages = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(merged[::2], merged[1::2], strict=False)]
    lengths: dict[int, int] = {}
    for _, symbols in packages[: len(leaves) - 1]:
        for symbol in symbols:
            lengths[symbol] = lengths.get(symbol, 0) + 1
    return lengths


def entropy(counts: Iterable[float] | np.ndarray) -> float:
    """-sum p log2 p of a histogram, in bits."""
    p = np.asarray(counts, np.float64)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log2(p)).sum())


def _tree(counts: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Symbol -> (length, word) of Huffman's tree; the rarer of two branches gets the bit 0."""
    heap = [(count, _Leaves([(symbol, 0, 0)])) for symbol, count in counts.items()]
    heap.append((1, _Leaves([(END, 0, 0)])))
    heapq.heapify(heap)
    while len(heap) > 1:
        (rare, left), (frequent, right) = heapq.heappop(heap), heapq.heappop(heap)
        zero = [(symbol, length + 1, word) for symbol, length, word in left]
        one = [(symbol, length + 1, word + (1 << length)) for symbol, length, word in right]
        heapq.heappush(heap, (rare + frequent, _Leaves(zero + one)))
    leaves = heap[0][1]
    if len(leaves) == 1:  # nothing but the end mark
        return {END: (1, 0)}
    return {symbol: (length, word) for symbol, length, word in leaves}


class _Leaves(list[tuple[int, int, int]]):
    """The (symbol, length, word) of a branch, ordered among branches of one count as the authors' package orders them."""

    def __lt__(self, other: list[tuple[int, int, int]]) -> bool:
        for (a, *mine), (b, *theirs) in zip(self, other, strict=False):
            if a != b:
                # The package's end mark says of itself that it is smaller than everything, whichever side it stands on.
                return a == END or (b != END and a < b)
            if mine != theirs:
                return mine < theirs
        return len(self) < len(other)
