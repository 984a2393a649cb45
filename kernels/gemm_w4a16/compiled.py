"""The product on the CPU, straight from the words of the packed order.

A few rows: sixteen words in a row are one vector, four ``pair`` of rows by four columns j. A nibble is masked where it lies
and turned into a float, 16 or 256 times too large; x, laid out along the same lanes, makes up for it. So a weight costs a mask, a
conversion and a multiply-add, an eighth of the bytes of float32 are read, and no weight is ever stored. The sums of a group are
scaled once, and eight times the sum of its x is taken off, because nibbles hold q + 8.

More rows: a group of a strip, 128 x 64 weights, is decoded into 32 KiB in the first cache and multiplied with six rows at a time.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from common.threads import in_parts

PART = 1 << 20
"""Multiply-adds that are worth a thread."""
STRIPS = 16
"""Strips of 64 columns whose sums of one row lie in the first cache."""
ROWS = 6
"""Rows of x whose sums the vector registers hold beside the weights."""
FEW = 4
"""Rows up to which it is cheaper to decode again for each."""
FAST = {"contract", "reassoc", "nsz"}


def product(x: np.ndarray, packed: np.ndarray, scales: np.ndarray, threads: int) -> np.ndarray:
    """y (m, n) float32; scales (k / 128 or 1, n) float32 as those of groups are stored."""
    (m, k), n = x.shape, packed.shape[1] // 2
    packed, x = np.ascontiguousarray(packed), np.ascontiguousarray(x)
    if m <= FEW:
        along, offset, y = _along_lanes(x), 8 * x.reshape(m, k // 128, 128).sum(-1), np.zeros((m, n), np.float32)

        def piece(first: int, last: int) -> None:
            for row in range(m):
                _one(along[row], offset[row], packed, scales, y[row], first, last)

    else:
        along = in_blocks(x)
        y = np.zeros((len(along) * ROWS, n), np.float32)

        def piece(first: int, last: int) -> None:
            _many(along, packed, scales, y, first, last)

    in_parts(piece, n // 64, min(threads, m * k * n // PART, n // 64), threads)
    return y[:m]


def dequantize(packed: np.ndarray, scales: np.ndarray, out: np.ndarray, threads: int) -> None:
    """Write W (k, n), columns in the order of the lanes, into ``out``, float32; scales as for :func:`product`."""
    packed = np.ascontiguousarray(packed)

    def piece(first: int, last: int) -> None:
        _dequantize(packed, scales, out, first, last)

    in_parts(piece, len(packed), min(threads, out.size // PART), threads)


def in_blocks(x: np.ndarray) -> np.ndarray:
    """(ceil(m / ROWS), k ROWS): the rows of a block side by side, zeros behind the last."""
    m, k = x.shape
    blocks = -(-m // ROWS)
    whole = np.zeros((blocks * ROWS, k), np.float32)
    whole[:m] = x
    return np.ascontiguousarray(whole.reshape(blocks, ROWS, k).transpose(0, 2, 1)).reshape(blocks, -1)


def _along_lanes(x: np.ndarray) -> np.ndarray:
    """(m, k / 16, 4, 16): for each (two, half) the x of four pairs, each four times, divided by 16 where half is 1."""
    m, k = x.shape
    digits = x.reshape(m, k // 16, 2, 4, 2).transpose(0, 1, 4, 2, 3) * np.array([[1], [1 / 16]], np.float32)
    return np.repeat(digits, 4, axis=-1).reshape(m, k // 16, 4, 16)


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _one(along, offset, packed, scales, y, first, last):
    """One row: two tiles of k at a time, STRIPS strips in turn, so that words are read in the order in which they lie."""
    sums, x = np.empty((STRIPS, 2, 128), np.float32), np.empty((8, 128), np.float32)
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    single = scales.shape[0] == 1
    for start in range(first, last, STRIPS):
        strips = min(STRIPS, last - start)
        for g in range(packed.shape[0] // 8):
            sums[:strips] = 0
            for tile in range(8 * g, 8 * g + 8, 2):
                for i in range(8):
                    for c in range(8):
                        for lane in range(16):
                            x[i, 16 * c + lane] = along[tile + i // 4, i % 4, lane]
                for s in range(strips):
                    at = 128 * (start + s)
                    here, below, sum0, sum1 = packed[tile, at : at + 128], packed[tile + 1, at : at + 128], sums[s, 0], sums[s, 1]
                    for lane in range(128):
                        a, b = sum0[lane], sum1[lane]
                        w = here[lane]
                        v = np.int32(w >> 16)
                        a += _f(w & 0xF) * x0[lane] + _f(w & 0xF0) * x1[lane] + _f(v & 0xF) * x2[lane] + _f(v & 0xF0) * x3[lane]
                        b += _f(w & 0xF00) * x0[lane] + _f(w & 0xF000) * x1[lane]
                        b += _f(v & 0xF00) * x2[lane] + _f(v & 0xF000) * x3[lane]
                        w = below[lane]
                        v = np.int32(w >> 16)
                        a += _f(w & 0xF) * x4[lane] + _f(w & 0xF0) * x5[lane] + _f(v & 0xF) * x6[lane] + _f(v & 0xF0) * x7[lane]
                        b += _f(w & 0xF00) * x4[lane] + _f(w & 0xF000) * x5[lane]
                        b += _f(v & 0xF00) * x6[lane] + _f(v & 0xF000) * x7[lane]
                        sum0[lane], sum1[lane] = a, b
            for s in range(strips):
                _close(sums[s], offset[g], scales[0 if single else g], y, 64 * (start + s))


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _close(sums, offset, scales, y, start):
    """Add the four pairs of each column, take the offset off, scale, and add to y."""
    for c in range(8):
        for j in range(4):
            at, column, scale = 16 * c + j, start + 16 * j + c, start + 8 * c + 2 * j
            a = sums[0, at] + sums[0, at + 4] + sums[0, at + 8] + sums[0, at + 12]
            b = sums[1, at] + sums[1, at + 4] + sums[1, at + 8] + sums[1, at + 12]
            y[column] += (a - offset) * scales[scale]
            y[column + 8] += (b * np.float32(1 / 256) - offset) * scales[scale + 1]


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def _many(along, packed, scales, y, first, last):
    """Rows in blocks; ``along`` has the ROWS values of a column of x together."""
    w, sums = np.empty((128, 64), np.float32), np.empty(64 * ROWS, np.float32)
    words, factors = np.empty((4, 32), np.int32), np.empty(64, np.float32)
    flat, single = w.reshape(-1), scales.shape[0] == 1
    for s in range(first, last):
        for g in range(packed.shape[0] // 8):
            _factors(scales[0 if single else g, 64 * s : 64 * s + 64], factors)
            for t in range(8):
                _decode(packed[8 * g + t, 128 * s : 128 * s + 128], factors, words, w[16 * t : 16 * t + 16])
            for block in range(along.shape[0]):
                x = along[block, 128 * ROWS * g : 128 * ROWS * (g + 1)]
                multiply(flat, x, sums, y[ROWS * block : ROWS * (block + 1), 64 * s : 64 * s + 64])
        for row in range(y.shape[0]):
            lanes = sums[:64]
            lanes[:] = y[row, 64 * s : 64 * s + 64]
            for c in range(8):
                for j in range(4):
                    for block in range(2):
                        y[row, 64 * s + 16 * j + 8 * block + c] = lanes[32 * block + 4 * c + j]


@njit(cache=True, nogil=True, fastmath=FAST)
@no_type_check
def multiply(w, x, sums, y):
    """Add to y (ROWS, 64) the product of x (128, ROWS) and w (128, 64), both flat; shared with the 2:4 form."""
    sums[:] = 0
    for k in range(0, 128, 4):
        w4, x4 = w[64 * k : 64 * k + 256], x[ROWS * k : ROWS * k + 4 * ROWS]
        for column in range(64):
            w0, w1, w2, w3 = w4[column], w4[column + 64], w4[column + 128], w4[column + 192]
            for r in range(ROWS):
                sums[column + 64 * r] += w0 * x4[r] + w1 * x4[r + ROWS] + w2 * x4[r + 2 * ROWS] + w3 * x4[r + 3 * ROWS]
    for r in range(ROWS):
        for column in range(64):
            y[r, column] += sums[64 * r + column]


@njit(cache=True, nogil=True)
@no_type_check
def _dequantize(packed, scales, out, first, last):
    words, factors = np.empty((4, 32), np.int32), np.empty(64, np.float32)
    single = scales.shape[0] == 1
    for tile in range(first, last):
        for s in range(packed.shape[1] // 128):
            at = slice(64 * s, 64 * s + 64)
            _factors(scales[0 if single else tile // 8, at], factors)
            _decode(packed[tile, 128 * s : 128 * s + 128], factors, words, out[16 * tile : 16 * tile + 16, at])


@njit(cache=True, nogil=True)
@no_type_check
def _decode(source, factors, words, out):
    """16 x 64 weights of a strip. Words of one pair of rows are brought together, so that rows are written in vectors."""
    for c in range(8):
        for pair in range(4):
            for j in range(4):
                words[pair, 4 * c + j] = source[16 * c + 4 * pair + j]
    for place in range(8):
        # Nibble (two block half) of a word belongs to row 8 half + 2 pair + two and to half a strip, block.
        shift, row, column = np.int32(4 * place), 8 * (place & 1) + (place >> 2), 32 * (place >> 1 & 1)
        scale = factors[column : column + 32]
        for pair in range(4):
            target, mine = out[row + 2 * pair, column : column + 32], words[pair]
            for lane in range(32):
                target[lane] = _f((np.int32(mine[lane] >> shift) & 0xF) - 8) * scale[lane]


@njit(cache=True, nogil=True)
@no_type_check
def _factors(scales, out):
    for c in range(8):
        for j in range(4):
            out[4 * c + j], out[32 + 4 * c + j] = scales[8 * c + 2 * j], scales[8 * c + 2 * j + 1]


@njit(cache=True, nogil=True, inline="always")
@no_type_check
def _f(nibble):
    """A float32, by way of 32 bits, for which there is a vector instruction."""
    return np.float32(np.int32(nibble))
