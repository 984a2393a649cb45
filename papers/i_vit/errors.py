"""How far the integer layers are from the functions they stand for, and which N a GELU gets."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtr

from papers.i_vit.kernel import WIDE_N, shift_gelu, shiftmax, unit_of
from papers.i_vit.simulation import SIGMOID

ENOUGH = 0.12
"""Largest error of a narrow GELU that is taken; above it the wide form is."""

CHOICES = range(8, 25)


@functools.cache
def gelu_error(scale: float, n: int, wide: bool = False, shifts: bool = False) -> float:
    """Largest |ShiftGELU - GELU| over all 8-bit codes in rows whose largest is 127, 64, 16 or 0; inf where N does not fit."""
    unit = unit_of(scale if shifts else SIGMOID * scale)
    worst = 0.0
    for most in (127, 64, 16, 0):
        x = np.arange(-128, most + 1).astype(np.int8)
        try:
            y = shift_gelu(x, unit=unit, n=n, wide=wide, shifts=shifts) * (scale / 128)
        except OverflowError:
            return np.inf
        worst = max(worst, float(np.abs(y - x * scale * ndtr(x * scale)).max()))
    return worst


@functools.cache
def choose_n(scale: float) -> tuple[int, bool]:
    """(N, wide) for a GELU whose codes have this scale: the N of the smallest error, or the wide form where none is small enough."""
    error, n = min((gelu_error(scale, n), n) for n in CHOICES)
    return (n, False) if error <= ENOUGH else (WIDE_N, True)


def choose_gelu(names: list[str], ranges: np.ndarray) -> dict[str, tuple[int, bool]]:
    """:func:`choose_n` for each GELU of a calibrated network."""
    return {
        name: choose_n(float(np.abs(ends).max() / 127))
        for name, ends in zip(names, ranges, strict=True)
        if name.endswith("feed_forward.up")
    }


def gelu_map(ranges: tuple[int, ...] = (1, 3, 6, 12)) -> dict[int, dict[str, float]]:
    """Errors by largest input and N, and of the wide form."""
    return {
        most: {str(n): gelu_error(most / 127, n) for n in CHOICES} | {"wide": gelu_error(most / 127, WIDE_N, True)}
        for most in ranges
    }


def softmax_errors(
    rng: np.random.Generator, deviation: float, tokens: int, bits: int, rows: int, draws: int = 8, log2e: bool = True
) -> Mapping[str, float]:
    """Shiftmax against softmax of the same 8-bit codes of normal scores: mean row L1, largest error, mean row sum.

    Each of ``draws`` tensors has its own scale, from its largest entry. Without ``log2e`` the exponential is 2^x: the scale is
    divided by what the shifts multiply with.
    """
    found: list[tuple[float, float, float]] = []
    for _ in range(draws):
        scores = rng.normal(0, deviation, (rows, tokens))
        scale = float(np.abs(scores).max() / 127)
        codes = np.floor(scores / scale + 0.5).astype(np.int8)
        want = np.exp(codes * scale)
        want /= want.sum(-1, keepdims=True)
        y = shiftmax(codes, unit=unit_of(scale if log2e else scale / 1.4375), bits=bits) * 2.0 ** (1 - bits)
        gap = np.abs(y - want)
        found.append((gap.sum(-1).mean(), gap.max(), y.sum(-1).mean()))
    l1, largest, total = np.array(found).T
    return {"mean L1": float(l1.mean()), "largest": float(largest.max()), "row sum": float(total.mean())}


def softmax_table(rng: np.random.Generator, tokens: tuple[int, ...], rows: int, log2e: bool = True) -> dict[str, Any]:
    """:func:`softmax_errors` over deviations 1 and 3, lengths, and 8 and 16 bits."""
    return {
        f"sigma {sigma}, {length} tokens, {bits} bits": softmax_errors(rng, sigma, length, bits, rows, log2e=log2e)
        for sigma in (1, 3) for length in tokens for bits in (8, 16)
    }  # fmt: skip
