"""Cost models: what one token costs as the context grows, in time, operations and memory traffic.

The text works on NumPy, PyTorch and JAX alike, element by element over arrays of lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def fit_affine(ends: Mapping[int, float]) -> tuple[float, float]:
    """(a, b) of the line y = a + b n through the two points that are given as {n: y}."""
    (n0, y0), (n1, y1) = sorted(ends.items())
    b = (y1 - y0) / (n1 - n0)
    return y0 - b * n0, b


def tokens_per_second(n: Any, a: float, b: float) -> Any:
    """Training speed 1 / c(n) for the cost of a token c(n) = a + b n in seconds.

    a is what every layer does for a token wherever it stands; b is the work of attention on one more earlier token. A
    model whose attention keeps a state of fixed size has b = 0.
    """
    return 1.0 / (a + b * n)


def attention_flops(kind: str, n: Any, d: int, e: int, block: int = 64) -> Any:
    """Operations of one head's forward pass over n tokens, a multiply-add counting 2.

    "LA2": n (2 B (d + e) + 4 d e): two B-wide products in the block, the state read and updated (algorithm 1);
    "LA1", "FA2": n^2 (d + e): the causal half of Q K^T and of its product with V.
    """
    if kind == "LA2":
        return n * (2.0 * block * (d + e) + 4.0 * d * e)
    return n * n * float(d + e)


def attention_bytes(kind: str, n: Any, d: int, e: int, block: int = 64, variant: str = "loop", item: int = 2) -> Any:
    """Bytes of one head's forward pass between memory and chip: q, k, v read and o written once, and what is added.

    The loop variant of LA2 keeps its state on the chip. The parallel variant writes the state of every block, d e floats
    of four bytes, and reads it again. LA1 and FA2 read k and v once for each block of queries, half of them on average.
    """
    once = n * (2.0 * d + 2.0 * e) * item
    if kind == "LA2":
        return once + (2.0 * 4 * d * e * n / block if variant == "parallel" else 0.0 * n)
    return n * (d + e) * float(item) + (n / block) * (n / 2) * (d + e) * item


def growth_exponent(lengths: Any, seconds: Any) -> float:
    """The slope of log seconds over log n, by least squares: 1 for linear time, 2 for quadratic."""
    return float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])


def crossover(first: tuple[float, float], second: tuple[float, float]) -> float:
    """The n at which two costs per token a + b n are equal."""
    (a0, b0), (a1, b1) = first, second
    return (a0 - a1) / (b1 - b0)
