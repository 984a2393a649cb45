"""Loops over blocks on the CPU, written so that the compiler makes vector instructions of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import no_type_check

import numpy as np
from numba import njit

from common.threads import in_parts

SMALL = 32
"""Up to so many codes each is compared with; longer books are searched by halves."""
PART = 1 << 16
"""Elements that are worth a thread."""


def quantize(x: np.ndarray, middles: np.ndarray, block: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and scales of a flat float32 array."""
    x = np.ascontiguousarray(x)
    indices, absmax = np.empty(x.size, np.uint8), np.empty(-(-x.size // block), np.float32)
    tree = np.full(1 << middles.size.bit_length(), np.inf, np.float32)
    tree[: middles.size] = middles
    _spread(lambda at, of: _quantize(x[at], tree, middles.size, block, indices[at], absmax[of]), x.size, block, threads)
    return indices, absmax


def dequantize(indices: np.ndarray, absmax: np.ndarray, code: np.ndarray, block: int, threads: int) -> np.ndarray:
    """The flat float32 array back."""
    indices, absmax, out = np.ascontiguousarray(indices), np.ascontiguousarray(absmax), np.empty(indices.size, np.float32)
    # Every byte has a place, so that no index can read outside.
    book = np.zeros(256, np.float32)
    book[: code.size] = code
    _spread(lambda at, of: _dequantize(indices[at], absmax[of], book, block, out[at]), out.size, block, threads)
    return out


def _spread(work: Callable[[slice, slice], None], size: int, block: int, threads: int) -> None:
    """Call with slices of elements and of their blocks, in as many threads as the size is worth."""

    def piece(first: int, last: int) -> None:
        work(slice(first * block, last * block), slice(first, last))

    in_parts(piece, -(-size // block), min(threads, size // PART), threads)


@njit(cache=True, nogil=True)
@no_type_check
def _quantize(x, tree, middles, block, indices, absmax):
    one, tiny = np.float32(1), np.float32(1.1754943508222875e-38)
    scaled, found = np.empty(block, np.float32), np.empty(block, np.int32)
    for b in range(absmax.size):
        start = b * block
        n = min(block, x.size - start)
        bits = np.uint32(0)
        values = x[start : start + n]
        # Magnitudes of floats are ordered as their bits are, NaN above infinity: an integer maximum loses none.
        for each in values.view(np.uint32):
            bits = max(bits, each & np.uint32(0x7FFFFFFF))
        absmax[b : b + 1].view(np.uint32)[0] = bits
        inverse = one / max(absmax[b], tiny)
        for i in range(n):
            scaled[i] = values[i] * inverse
            found[i] = 0
        if middles <= SMALL:
            for j in range(middles):
                for i in range(n):
                    found[i] += scaled[i] > tree[j]
        else:
            step = tree.size // 2
            while step > 0:
                for i in range(n):
                    found[i] += step if scaled[i] > tree[found[i] + step - 1] else 0
                step //= 2
        for i in range(n):
            indices[start + i] = found[i]


@njit(cache=True, nogil=True)
@no_type_check
def _dequantize(indices, absmax, book, block, out):
    for b in range(absmax.size):
        # Views of the block let the compiler see that the loop has no other bounds.
        scale, places, values = absmax[b], indices[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        for i in range(values.size):
            values[i] = book[places[i]] * scale
