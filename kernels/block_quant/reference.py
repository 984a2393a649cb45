"""The definition, in float32: the rounding of the quotient decides which code is nearest."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, UInt8


def quantize_blockwise(
    x: Float[np.ndarray, "*shape"], code: Float32[np.ndarray, " size"], *, block: int = 64
) -> tuple[UInt8[np.ndarray, " count"], Float32[np.ndarray, " blocks"]]:
    flat = x.astype(np.float32).reshape(-1)
    rows = np.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    absmax = np.abs(rows).max(axis=1, initial=0)
    inverse = np.float32(1) / np.maximum(absmax, np.finfo(np.float32).tiny)
    middles = (code[1:] + code[:-1]) / np.float32(2)
    return np.searchsorted(middles, (rows * inverse[:, None]).reshape(-1)[: flat.size]).astype(np.uint8), absmax


def dequantize_blockwise(
    indices: UInt8[np.ndarray, " count"],
    absmax: Float32[np.ndarray, " blocks"],
    code: Float32[np.ndarray, " size"],
    *,
    block: int = 64,
) -> Float32[np.ndarray, " count"]:
    return code[indices] * absmax[np.arange(indices.size) // block]
