"""The definition: the weights are written out and multiplied. One text for NumPy and torch, whose autograd gives dx."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace
from einops import rearrange
from jaxtyping import Float, Float32, UInt8


def matmul_nf4(
    x: Float[Any, "*batch k"],
    packed: UInt8[Any, "n half"],
    absmax: Float[Any, " blocks"],
    code: Float[Any, " 16"],
    *,
    block: int = 64,
) -> Float[Any, "*batch n"]:
    xp = array_namespace(x)
    indices = rearrange(xp.stack([packed >> 4, packed & 15], axis=-1), "n half two -> (n half two)")
    scale = absmax[xp.arange(indices.shape[0]) // block]
    w = code[xp.astype(indices, xp.int64)] * scale
    return x @ xp.astype(w.reshape(packed.shape[0], -1), x.dtype).T


def dequantize_nf4(
    packed: UInt8[np.ndarray, "n half"],
    absmax: Float32[np.ndarray, " blocks"],
    code: Float32[np.ndarray, " 16"],
    *,
    block: int = 64,
) -> Float32[np.ndarray, "n k"]:
    indices = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    return (code[indices] * absmax[np.arange(indices.size) // block]).reshape(packed.shape[0], -1)
