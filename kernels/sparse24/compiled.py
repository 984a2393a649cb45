"""A loop over packed rows for a CPU: every byte of the weights is read once, whatever few rows of x there are."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Shaped, UInt16
from numba import njit

from common.threads import in_parts

PART = 1 << 18
"""Stored numbers that a thread is worth."""
FAST = {"reassoc", "contract"}
"""Sums may be taken in another order; NaN and infinity stay what they are."""


def matmul(
    x: Float32[np.ndarray, "batch k"],
    values: Shaped[np.ndarray, "rows stored"],
    meta: UInt16[np.ndarray, "rows words"],
    paired: bool,
    threads: int,
) -> Float32[np.ndarray, "batch rows"]:
    """x times the packed weights, transposed."""
    y = np.empty((len(x), len(values)), np.float32)
    x, walk = np.ascontiguousarray(x), _pairs if paired else _singles

    def rows(first: int, last: int) -> None:
        walk(x, values, meta, y, first, last, values.dtype == np.uint8)

    in_parts(rows, len(values), min(threads, 1 + values.size // PART), threads)
    return y


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _singles(x, values, meta, y, first, last, nibbles):
    half = x.shape[1] // 2
    full = half // 8
    picked, weight = np.zeros(half, np.float32), np.zeros(half, np.float32)
    for r in range(first, last):
        _numbers(values[r], weight, nibbles)
        words = meta[r]
        for m in range(x.shape[0]):
            row = x[m]
            for i in range(full):
                word = words[i]
                for j in range(8):
                    picked[8 * i + j] = row[16 * i + 4 * (j // 2) + ((word >> (2 * j)) & 3)]
            for j in range(8 * full, half):  # of a last word that is not full
                picked[j] = row[4 * (j // 2) + ((words[full] >> (2 * (j % 8))) & 3)]
            y[m, r] = _dot(picked, weight)


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _pairs(x, values, meta, y, first, last, nibbles):
    half = x.shape[1] // 2
    full = half // 16
    picked, weight = np.zeros(half, np.float32), np.zeros(half, np.float32)
    for r in range(first, last):
        _numbers(values[r], weight, nibbles)
        words = meta[r]
        for m in range(x.shape[0]):
            row = x[m]
            for i in range(full):
                word = words[i]
                for j in range(8):
                    place = 32 * i + 8 * (j // 2) + 2 * ((word >> (2 * j)) & 3)
                    picked[16 * i + 2 * j] = row[place]
                    picked[16 * i + 2 * j + 1] = row[place + 1]
            for j in range(8 * full, half // 2):
                place = 8 * (j // 2) + 2 * ((words[full] >> (2 * (j % 8))) & 3)
                picked[2 * j] = row[place]
                picked[2 * j + 1] = row[place + 1]
            y[m, r] = _dot(picked, weight)


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _numbers(stored, weight, nibbles):
    """The stored numbers of a row as float32; a byte holds two of 4 bits, the first in its low half."""
    if nibbles:
        for b in range(stored.size):
            byte = np.int32(stored[b])
            weight[2 * b] = np.float32(((byte & 15) ^ 8) - 8)
            weight[2 * b + 1] = np.float32(((byte >> 4) ^ 8) - 8)
    else:
        for h in range(stored.size):
            weight[h] = np.float32(stored[h])


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _dot(picked, weight):
    total = np.float32(0)
    for h in range(picked.size):
        total += picked[h] * weight[h]
    return total
