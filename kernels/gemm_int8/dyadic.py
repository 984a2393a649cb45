"""Real factors as an integer and a shift, made once, before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int32

MOST_SHIFT = 62


def dyadic(ratio: Any, name: str = "ratio") -> tuple[Int32[np.ndarray, " channels"], Int32[np.ndarray, " channels"]]:
    """m and e with m 2^-e = ratio to within 2^-31 of it: m = floor(f 2^31 + 1/2), e = 31 - p, where ratio = f 2^p, 1/2 <= |f| < 1.

    Args:
        ratio: numbers, for a requantisation S_in / S_out; negative ones (a norm's scale may be) keep their sign in m.
        name: of the tensor, for errors.

    Returns:
        int32 arrays of one axis. A ratio below 2^-31 has e = 62 and a shorter m.

    Raises:
        ValueError: a ratio that is NaN or infinite, 0, or 2^31 and more.

    Source: Li and Gu, I-ViT (arXiv 2207.01405), section 3.2.
    """
    ratio = np.atleast_1d(np.asarray(ratio, np.float64))
    wrong = ~(np.isfinite(ratio) & (ratio != 0) & (np.abs(ratio) < 2.0**31))
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name}: the factor of channel {place} is {ratio[place]}; wanted finite, not 0 and below 2^31")
    fraction, power = np.frexp(ratio)
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = 31 - power.astype(np.int64)
    # A fraction next to 1 rounds up to 2^31, which is 2^30 and one shift less.
    full = np.abs(multiplier) == 2**31
    multiplier, shift = np.where(full, multiplier // 2, multiplier), np.where(full, shift - 1, shift)
    if (shift < 0).any():
        raise ValueError(f"{name}: a factor rounds to 2^31; wanted less")
    excess = np.minimum(np.maximum(shift - MOST_SHIFT, 0), 40)
    multiplier = (multiplier + ((1 << excess) >> 1)) >> excess
    return multiplier.astype(np.int32), np.minimum(shift, MOST_SHIFT).astype(np.int32)
