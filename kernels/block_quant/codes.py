"""Code books: the values that a code of 4 or 8 bits can stand for, sorted, within [-1, 1]. NumPy alone."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The constants that bitsandbytes ships (Dettmers et al., arXiv 2305.14314, appendix E)."""
_FP4 = (0, 0.0625, 8, 12, 4, 6, 2, 3)
"""Twelfths that the three lower bits of bitsandbytes' FP4 stand for, in the order of the bits; bit 3 is the sign."""


@functools.cache
def code_book(name: str) -> Float32[np.ndarray, " size"]:
    """The sorted values of a code book, float32, read-only.

    - "nf4": 16 values with equal normal probability mass between them (QLoRA; bitsandbytes' constants).
    - "fp4": 16 values of sign, two bits of exponent and one of fraction, zero twice (bitsandbytes). Its bytes hold other
      numbers than the places in the sorted book: :func:`stored_bits`.
    - "int4", "int8": k / 7 for |k| <= 7, and k / 127 for |k| <= 127.
    - "dynamic_signed", "dynamic_unsigned": 256 values whose exponent takes as many bits as it needs: seven decades,
      the larger the finer (Dettmers, arXiv 1511.04561; bitsandbytes' ``create_dynamic_map``).

    Raises:
        ValueError: another name.
    """
    if name not in _BOOKS:
        raise ValueError(f"code_book: no code book {name!r}; there are {', '.join(_BOOKS)}")
    book = _BOOKS[name]()
    book.setflags(write=False)
    return book


@functools.cache
def stored_bits(name: str) -> UInt8[np.ndarray, " size"]:
    """The number that bitsandbytes stores for each value of a sorted code book: 0, 1, ... except for "fp4"."""
    if name != "fp4":
        return np.arange(code_book(name).size, dtype=np.uint8)
    # Sorted: minus one down to the smallest negative, the zero that is used, minus zero, the positives.
    return np.array([11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3], np.uint8)


def _nf4() -> np.ndarray:
    return np.array(_NF4, np.float32)


def _fp4() -> np.ndarray:
    half = np.array(_FP4, np.float32) / np.float32(12)
    return np.concatenate([half, -half])[stored_bits("fp4")] + np.float32(0)


def _linear(steps: int) -> np.ndarray:
    return np.arange(-steps, steps + 1, dtype=np.float32) / np.float32(steps)


def _dynamic(signed: bool) -> np.ndarray:
    """0, 1 and, for each decade 10^-6 .. 1, the middles of equal parts of (0.1, 1], twice as many as in the decade below."""
    values = [np.array([0, 1], np.float32)]
    for i in range(7):
        edges = _line(2**i + 1 if signed else 2 ** (i + 1) + 1)
        middles = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [middles, -middles] if signed else [middles]
    return np.sort(np.concatenate(values))


def _line(count: int) -> np.ndarray:
    """From 0.1 to 1 as torch.linspace rounds it: from both ends, product and sum in one rounding."""
    first, last = np.float32(0.1), np.float32(1)
    step = np.float64((last - first) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, first + step * i, last - step * (count - 1 - i)).astype(np.float32)


_BOOKS: dict[str, Callable[[], np.ndarray]] = {
    "nf4": _nf4,
    "fp4": _fp4,
    "int4": functools.partial(_linear, 7),
    "int8": functools.partial(_linear, 127),
    "dynamic_signed": functools.partial(_dynamic, True),
    "dynamic_unsigned": functools.partial(_dynamic, False),
}
