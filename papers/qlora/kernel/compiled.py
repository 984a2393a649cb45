"""The dequantisation of packed weights on the CPU: a byte is looked up as a pair of values, then blocks are scaled."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from common.threads import in_parts

PART = 1 << 16
"""Weights that are worth a thread."""


def dequantize(packed: np.ndarray, absmax: np.ndarray, code: np.ndarray, block: int, out: np.ndarray, threads: int) -> None:
    """Write the values of flat packed indices into ``out``, float32."""
    byte = np.arange(256)
    pairs = np.ascontiguousarray(np.stack([code[byte >> 4], code[byte & 15]], axis=1)).view(np.uint64)[:, 0]
    packed, absmax = np.ascontiguousarray(packed), np.ascontiguousarray(absmax)

    def piece(first: int, last: int) -> None:
        half = slice(first * block // 2, last * block // 2)
        _dequantize(packed[half], absmax[first:last], pairs, block // 2, out[first * block : last * block])

    in_parts(piece, absmax.size, min(threads, out.size // PART), threads)


@njit(cache=True, nogil=True)
@no_type_check
def _dequantize(packed, absmax, pairs, half, out):
    out_pairs = out.view(np.uint64)
    for b in range(absmax.size):
        scale = absmax[b]
        source, two, one = (
            packed[b * half : (b + 1) * half],
            out_pairs[b * half : (b + 1) * half],
            out[2 * b * half : 2 * (b + 1) * half],
        )
        for i in range(source.size):
            two[i] = pairs[source[i]]
        for i in range(one.size):
            one[i] *= scale
