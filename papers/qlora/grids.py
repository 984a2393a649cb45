"""Where the sixteen values of NF4 come from, and grids that it is compared with."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm

OFFSET = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
"""Outermost quantile of the normal distribution: the mean of what 32 and 30 bins want."""

_E3M0 = np.array([0, *(2.0**-e for e in range(6, -1, -1))], np.float32)

GRIDS = {"fp4_e3m0": np.concatenate([-_E3M0[:0:-1], _E3M0])}
"""Grids of this paper alone: a sign and three bits of exponent, 1/64 to 1."""

NAMES = ("nf4", "fp4", "int4", *GRIDS)


def normal_float() -> Float64[np.ndarray, " 16"]:
    """NF4 as it is built: 8 quantiles of the positive side, 7 of the negative, and an exact zero, over the largest.

    Positive: Phi^-1(linspace(delta, 1/2, 9)) without the last, negative: -Phi^-1(linspace(delta, 1/2, 8)) without the last,
    delta = :data:`OFFSET`. Source: bitsandbytes, ``create_normal_map``; the paper's section 3 and appendix E.
    """
    positive = norm.ppf(np.linspace(OFFSET, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(OFFSET, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([positive, [0.0], negative]))
    return values / values.max()


def textbook_quantiles() -> Float64[np.ndarray, " 15"]:
    """The paper's equation 4, q_i = (Phi^-1(i / (2^k + 1)) + Phi^-1((i + 1) / (2^k + 1))) / 2, over the largest.

    For k = 4 the quantiles 0 and 1 are infinite, so i = 1 .. 15 are left: symmetric, and not the shipped constants.
    """
    i = np.arange(1, 16)
    values = (norm.ppf(i / 17) + norm.ppf((i + 1) / 17)) / 2
    return values / np.abs(values).max()
