"""The definition, in 64-bit integers, which hold every product here exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int8, Int32


def matmul_int8(
    x: Int8[np.ndarray, "*rows inner"], weight: Int8[np.ndarray, "outer inner"], bias: Int32[np.ndarray, " outer"] | None = None
) -> Int32[np.ndarray, "*rows outer"]:
    total = np.einsum("...i,oi->...o", x.astype(np.int64), weight.astype(np.int64))
    return (total if bias is None else total + bias).astype(np.int32)


def matmul_int8_dyadic(
    x: Int8[np.ndarray, "*rows inner"],
    weight: Int8[np.ndarray, "outer inner"],
    bias: Int32[np.ndarray, " outer"] | None,
    multiplier: Int32[np.ndarray, " channels"],
    shift: Int32[np.ndarray, " channels"],
    *,
    bits: int = 8,
) -> Int[np.ndarray, "*rows outer"]:
    return requantise(matmul_int8(x, weight, bias), multiplier, shift, bits=bits)


def matmul_int8_scaled(
    x: Int8[np.ndarray, "*rows inner"],
    weight: Int8[np.ndarray, "outer inner"],
    x_scale: Float[np.ndarray, "*some"],
    weight_scale: Float[np.ndarray, " scales"],
    bias: Float[np.ndarray, " outer"] | None = None,
) -> Float[np.ndarray, "*rows outer"]:
    y = matmul_int8(x, weight) * x_scale * weight_scale
    return y if bias is None else y + bias


def requantise(
    x: Int[np.ndarray, "*rows channel"],
    multiplier: Int32[np.ndarray, " channels"],
    shift: Int32[np.ndarray, " channels"],
    *,
    bits: int = 8,
) -> Int[np.ndarray, "*rows channel"]:
    m, e = multiplier.astype(np.int64), shift.astype(np.int64)
    half = (np.int64(1) << e) >> 1
    y: Any = (x.astype(np.int64) * m + half) >> e
    dtype = {4: np.int8, 8: np.int8, 16: np.int16, 32: np.int32}[bits]
    return np.clip(y, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(dtype)
