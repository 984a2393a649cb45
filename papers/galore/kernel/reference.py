"""The definition, in NumPy: the moments as numbers, one step, and the nearest codes by looking at all of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from kernels.block_quant import code_book


def adam8bit(
    gradient: Float[np.ndarray, " count"],
    mean: UInt8[np.ndarray, " count"],
    mean_scale: Float[np.ndarray, " blocks"],
    square: UInt8[np.ndarray, " count"],
    square_scale: Float[np.ndarray, " blocks"],
    *,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    block: int = 256,
    grid: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    block_of = np.arange(gradient.size) // block
    m = beta1 * code_book("dynamic_signed")[mean] * mean_scale[block_of] + (1 - beta1) * gradient
    v = beta2 * code_book("dynamic_unsigned")[square] * square_scale[block_of] + (1 - beta2) * gradient**2
    direction = m / (1 - beta1**step) / (np.sqrt(v) / np.sqrt(1 - beta2**step) + epsilon)
    return direction, *_encode(m, "dynamic_signed", block, grid), *_encode(v, "dynamic_unsigned", block, grid)


def _encode(x: np.ndarray, book: str, block: int, grid: bool) -> tuple[np.ndarray, np.ndarray]:
    code = code_book(book).astype(np.float64)
    codes, scales = np.zeros(x.size, np.uint8), np.zeros(-(-x.size // block))
    for b in range(scales.size):
        part = x[b * block : (b + 1) * block]
        scales[b] = np.abs(part).max()
        quotient = part / scales[b] if scales[b] > 0 else np.zeros(part.size)
        if grid:
            # Of the 65,536 points -1, -1 + 2/65535, ..., 1 the nearest.
            quotient = np.floor((quotient + 1) / 2 * 65535 + 0.5) * 2 / 65535 - 1
        # argmin takes the first of two that are equally near: the lower code.
        nearest = np.abs(quotient[:, None] - code).argmin(1)
        codes[b * block : (b + 1) * block] = 0 if grid and scales[b] == 0 else nearest
    return codes, scales
