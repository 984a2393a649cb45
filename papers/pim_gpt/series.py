"""The companion chip's arithmetic: only additions and multiplications, in float32, and how many of them each operator takes.

exp by a Taylor polynomial of six terms after x = k ln 2 + r; 1/x and 1/sqrt(x) by Newton's method from a first value that is
made from the bits of x (paper, section on the ASIC; numbers of terms and steps recalled).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from papers.pim_gpt.machine import Machine

Array = Float32[np.ndarray, "..."]
TERMS = 6
STEPS = 3
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


def exp(x: Array, terms: int = TERMS) -> Array:
    """e^x = 2^k sum_{i < terms} r^i / i!, |r| <= ln(2)/2; below -87 it is 0, above 88 the largest power of two."""
    x = np.asarray(x, np.float32)
    inside = np.clip(x, -87, 88)
    k = np.rint(inside * np.float32(1 / np.log(2)))
    # ln 2 in two parts, so that k ln 2 is taken off without rounding.
    r = inside - k * _LN2_HIGH - k * _LN2_LOW
    y = np.ones_like(r)
    for i in range(terms - 1, 0, -1):
        y = y * r * np.float32(1 / i) + 1
    return np.where(x < -87, np.float32(0), np.ldexp(y, k.astype(np.int32)))


def reciprocal(x: Array, steps: int = STEPS) -> Array:
    """1/x for normal x: y <- y (2 - x y)."""
    x = np.asarray(x, np.float32)
    y = (np.int32(0x7EF311C3) - np.abs(x).view(np.int32)).view(np.float32)
    size = np.abs(x)
    for _ in range(steps):
        y = y * (2 - size * y)
    return np.copysign(y, x)


def rsqrt(x: Array, steps: int = STEPS) -> Array:
    """1/sqrt(x) for normal x > 0: y <- y (3/2 - x y^2 / 2)."""
    x = np.asarray(x, np.float32)
    y = (np.int32(0x5F3759DF) - (x.view(np.int32) >> 1)).view(np.float32)
    for _ in range(steps):
        y = y * (np.float32(1.5) - np.float32(0.5) * x * y * y)
    return y


def tanh(x: Array) -> Array:
    """1 - 2 / (1 + e^(2x))"""
    return 1 - 2 * reciprocal(1 + exp(np.clip(2 * np.asarray(x, np.float32), -60, 60)))


def sigmoid(x: Array) -> Array:
    return reciprocal(1 + exp(np.clip(-np.asarray(x, np.float32), -60, 60)))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))"""
    return np.float32(0.5) * x * (1 + tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)))


def softmax(x: Array) -> Array:
    """Over the last axis, the largest taken off first."""
    e = exp(x - x.max(-1, keepdims=True))
    return e * reciprocal(e.sum(-1, keepdims=True, dtype=np.float32))


def normalise(x: Array, scale: Array, shift: Array | None, centred: bool, epsilon: float) -> Array:
    """Layer norm (``centred``), or division by the root mean square."""
    share = np.float32(1 / x.shape[-1])
    if centred:
        x = x - x.sum(-1, keepdims=True, dtype=np.float32) * share
    variance = (x * x).sum(-1, keepdims=True, dtype=np.float32) * share
    y = x * rsqrt(variance + np.float32(epsilon)) * scale
    return y if shift is None else y + shift


@dataclass(frozen=True)
class Work:
    """Multiplications and additions for each number, and how often the pipeline has to be filled (once for each pass)."""

    multiplications: int = 0
    additions: int = 0
    stages: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.multiplications + other.multiplications, self.additions + other.additions, max(self.stages, other.stages)
        )

    def time(self, machine: Machine, numbers: Any) -> Any:
        """Cycles in which the units take in ``numbers`` numbers."""
        return max(-(-numbers * self.multiplications // machine.multipliers), -(-numbers * self.additions // machine.adders))


_EXP, _RECIPROCAL = Work(2 + TERMS - 1, 3 + TERMS - 1), Work(2 * STEPS, STEPS + 1)
WORK = {
    "bias": Work(0, 1, 1),
    "scale": Work(1, 0, 1),
    "residual": Work(0, 1, 1),
    "compare": Work(0, 1, 1),
    "rope": Work(2, 1, 1),
    # largest; difference, exp and sum; reciprocal; product
    "softmax": Work(_EXP.multiplications + 1, _EXP.additions + 3, 4),
    # mean; difference, square and sum; root; product with it and with the weight
    "layer_norm": Work(3, 4, 4),
    "rms_norm": Work(3, 1, 3),
    # x sigmoid(2 u), u a cubic polynomial of x
    "gelu": Work(5, 2, 3) + _EXP + _RECIPROCAL,
    # and the product with up
    "silu": Work(2, 1, 3) + _EXP + _RECIPROCAL,
}
"""Of each operator. Reciprocals and roots of a single number, as in softmax and norms, are part of the stages."""
