"""The step in one pass over the CPU's memory, written so that the compiler makes vector instructions of it."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from common.threads import in_parts

from .factors import Factors

PART = 1 << 16
"""Elements that are worth a thread."""
PIECE = 2048
"""Elements that are copied, or whose gradients are widened, before they are updated: they stay in the nearest caches."""
KINDS = {"float16": 1, "bfloat16": 2}


def step(arrays: tuple[np.ndarray, ...], out: tuple[np.ndarray, ...], kind: str, factors: Factors, threads: int) -> None:
    """Parameter, gradient, mean, square; ``out`` may be the first, third and fourth. A 16-bit gradient comes as its bits."""
    numbers = np.array(factors, arrays[0].dtype)
    in_place = all(mine is theirs for mine, theirs in zip(out, (arrays[0], *arrays[2:]), strict=True))

    def work(first: int, last: int) -> None:
        _step(*(x[first:last] for x in (*arrays, *out)), numbers, KINDS.get(kind, 0), in_place)

    in_parts(work, arrays[0].size, min(threads, arrays[0].size // PART), threads)


@njit(cache=True, nogil=True)
@no_type_check
def _step(parameter, gradient, mean, square, out_parameter, out_mean, out_square, numbers, kind, in_place):
    wide = np.empty(PIECE, parameter.dtype)
    for start in range(0, parameter.size, PIECE):
        end = min(start + PIECE, parameter.size)
        p, g, m, v = out_parameter[start:end], gradient[start:end], out_mean[start:end], out_square[start:end]
        if not in_place:
            _copy(parameter[start:end], p)
            _copy(mean[start:end], m)
            _copy(square[start:end], v)
        if kind == 0:
            _update(p, g, m, v, numbers)
        else:
            _widen(g, wide, kind)
            _update(p, wide[: end - start], m, v, numbers)


@njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _update(p, g, m, v, numbers):
    """In place: with three arrays more to write to, the compiler gives up proving that none overlap."""
    shrink, coupled, new_mean, keep_square = numbers[0], numbers[1], numbers[2], numbers[3]
    new_square, root, rate, epsilon = numbers[4], numbers[5], numbers[6], numbers[7]
    for i in range(p.size):
        gradient = g[i] + coupled * p[i]
        mean = m[i] + new_mean * (gradient - m[i])
        square = keep_square * v[i] + new_square * gradient * gradient
        m[i] = mean
        v[i] = square
        p[i] = shrink * p[i] - rate * mean / (np.sqrt(square) * root + epsilon)


@njit(cache=True, nogil=True)
@no_type_check
def _copy(source, target):
    for i in range(source.size):
        target[i] = source[i]


@njit(cache=True, nogil=True)
@no_type_check
def _widen(narrow, wide, kind):
    """Bits of bfloat16 are the upper half of those of float32. Bits of float16 moved up lack 112 in the exponent, and stand
    for infinity or NaN where their own exponent is full."""
    if kind == 1:
        for i in range(narrow.size):
            bits = np.uint32(narrow[i])
            rest = np.uint32((bits & 0x7FFF) << 13)
            value = rest.view(np.float32) * np.float32(2.0**112)
            if rest >= 0x0F800000:
                value = np.uint32(rest | 0x7F800000).view(np.float32)
            wide[i] = -value if bits & 0x8000 else value
    else:
        for i in range(narrow.size):
            wide[i] = np.uint32(np.uint32(narrow[i]) << 16).view(np.float32)
