"""The two code books and the borders between their codes. NumPy alone."""

from __future__ import annotations

import functools

import numpy as np

from kernels.block_quant.codes import code_book

ZERO = 127
"""The signed code of zero, which fills up a ragged block; the unsigned one is 0."""
STEPS = 65535
"""Steps of the grid over [-1, 1] that bitsandbytes rounds to on a CPU."""


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(signed codes, unsigned codes, borders of the signed, borders of the unsigned); 256 and 255 values, float32.

    A number belongs to the code whose place is the count of borders below it.
    """
    books = code_book("dynamic_signed"), code_book("dynamic_unsigned")
    return (*books, *((book[1:] + book[:-1]) / np.float32(2) for book in books))


@functools.cache
def first_guess() -> tuple[np.ndarray, np.ndarray]:
    """For the upper 15 bits of a float32 the lowest code of any number with these bits, signed and unsigned."""
    lowest = np.arange(1 << 15, dtype=np.uint32) << np.uint32(17)
    # Of negative numbers the lowest has the largest magnitude.
    lowest |= np.where(lowest >> 31, np.uint32(0x1FFFF), np.uint32(0))
    values = np.nan_to_num(lowest.view(np.float32), nan=-1, posinf=1, neginf=-1)
    return tuple(np.searchsorted(borders, values).astype(np.uint8) for borders in tables()[2:])  # type: ignore[return-value]
