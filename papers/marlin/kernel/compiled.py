"""The 2:4 product on the CPU: a group of a strip, 128 x 64 weights of which half are zero, is written out in the first cache from
its words and places, and multiplied with six rows at a time, as in :mod:`kernels.gemm_w4a16.compiled`."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from common.threads import in_parts
from kernels.gemm_w4a16.compiled import PART, ROWS, in_blocks, multiply


def product(x: np.ndarray, values: np.ndarray, meta: np.ndarray, scales: np.ndarray, threads: int) -> np.ndarray:
    """y (m, n) float32 in the order of the lanes; scales (k / 128 or 1, n) as those of groups are stored."""
    (m, k), n = x.shape, values.shape[1] // 2
    values, meta, along = np.ascontiguousarray(values), np.ascontiguousarray(meta), in_blocks(np.ascontiguousarray(x))
    y = np.zeros((len(along) * ROWS, n), np.float32)

    def piece(first: int, last: int) -> None:
        _many(along, values, meta, scales, y, first, last)

    in_parts(piece, n // 64, min(threads, m * k * n // PART, n // 64), threads)
    return y[:m]


@njit(cache=True, nogil=True)
@no_type_check
def _many(along, values, meta, scales, y, first, last):
    w, sums = np.empty((128, 64), np.float32), np.empty(64 * ROWS, np.float32)
    words, places, factors = np.empty((4, 32), np.int32), np.empty((2, 2, 32), np.int32), np.empty((2, 32), np.float32)
    flat, single = w.reshape(-1), scales.shape[0] == 1
    for s in range(first, last):
        at = slice(128 * s, 128 * s + 128)
        for g in range(values.shape[0] // 4):
            scale = scales[0 if single else g, 64 * s : 64 * s + 64]
            for lane in range(32):
                factors[0, lane], factors[1, lane] = scale[2 * lane], scale[2 * lane + 1]
            for t in range(4):
                _decode(values[4 * g + t, at], meta[4 * g + t, at], factors, words, places, w[32 * t : 32 * t + 32])
            for block in range(along.shape[0]):
                x = along[block, 128 * ROWS * g : 128 * ROWS * (g + 1)]
                multiply(flat, x, sums, y[ROWS * block : ROWS * (block + 1), 64 * s : 64 * s + 64])


@njit(cache=True, nogil=True)
@no_type_check
def _decode(source, meta, factors, words, places, out):
    """32 x 64 weights of a strip; lanes are (c, j)."""
    for c in range(8):
        for j in range(4):
            for pair in range(4):
                words[pair, 4 * c + j] = source[16 * c + 4 * pair + j]
            for half in range(2):
                for block in range(2):
                    places[half, block, 4 * c + j] = meta[64 * (j >> 1) + 8 * c + 4 * (j & 1) + 2 * half + block]
    for half in range(2):
        for block in range(2):
            low, place = np.int32(4 * (2 * block + half)), places[half, block]
            high = np.int32(low + 16)
            scale = factors[block]
            for pair in range(4):
                row, shift = 16 * half + 4 * pair, np.int32(4 * pair)
                mine = words[pair]
                out0, out1 = out[row, 32 * block : 32 * block + 32], out[row + 1, 32 * block : 32 * block + 32]
                out2, out3 = out[row + 2, 32 * block : 32 * block + 32], out[row + 3, 32 * block : 32 * block + 32]
                for lane in range(32):
                    a = np.float32(np.int32((np.int32(mine[lane] >> low) & 0xF) - 8)) * scale[lane]
                    b = np.float32(np.int32((np.int32(mine[lane] >> high) & 0xF) - 8)) * scale[lane]
                    where = np.int32(place[lane] >> shift)
                    i, k = np.int32(where & 3), np.int32(np.int32(where >> 2) & 3)
                    zero = np.float32(0)
                    out0[lane] = (a if i == 0 else zero) + (b if k == 0 else zero)
                    out1[lane] = (a if i == 1 else zero) + (b if k == 1 else zero)
                    out2[lane] = (a if i == 2 else zero) + (b if k == 2 else zero)
                    out3[lane] = (a if i == 3 else zero) + (b if k == 3 else zero)
