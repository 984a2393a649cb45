"""The definition, in 64-bit integers, which hold every product here exactly; ``//`` is floor."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int32, Int64


def shiftmax(x: Int[np.ndarray, "*rows count"], *, unit: int, n: int = 15, bits: int = 16) -> Int[np.ndarray, "*rows count"]:
    x = x.astype(np.int64)
    e = shift_exp(x - x.max(axis=-1, keepdims=True), unit, n)
    factor = (2**31 - 1) // e.sum(axis=-1, keepdims=True)
    return ((e * factor) >> (32 - bits)).astype(np.int16 if bits == 16 else np.int8)


def shift_gelu(
    x: Int[np.ndarray, "*rows count"], *, unit: int, n: int = 23, wide: bool = False, shifts: bool = False
) -> Int32[np.ndarray, "*rows count"]:
    x = x.astype(np.int64)
    most = np.maximum(x.max(axis=-1, keepdims=True, initial=0), 0)
    below, minus = x - most, -most
    if shifts:
        below, minus = (a + (a >> 1) + (a >> 3) + (a >> 4) for a in (below, minus))
    first, second = shift_exp(below, unit, n), shift_exp(minus, unit, n)
    bits = 62 if wide else 31
    sigmoid = first * ((2**bits - 1) // (first + second)) >> (bits - 7)
    return (x * sigmoid).astype(np.int32)


def i_layernorm(x: Int[np.ndarray, "*rows count"], *, steps: int = 10) -> Int32[np.ndarray, "*rows count"]:
    x, count = x.astype(np.int64), x.shape[-1]
    d = x - (2 * x.sum(axis=-1, keepdims=True) + count) // (2 * count)
    v = (d * d).sum(axis=-1, keepdims=True)
    k = np.full_like(v, 2**16)
    for _ in range(steps):
        k = (k + v // k) >> 1
    return ((d * ((2**31 - 1) // k)) >> 1).astype(np.int32)


def shift_exp(x: Int64[np.ndarray, "*rows count"], unit: int, n: int) -> Int64[np.ndarray, "*rows count"]:
    """exp(S x) in steps of S 2^-n, for x <= 0."""
    x = np.maximum(x + (x >> 1) - (x >> 4), -n * unit)
    q = -x // unit
    r = x + q * unit
    return ((r + 2 * unit) << (n - q)) >> 1
