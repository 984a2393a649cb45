"""The definition."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from .layout import limits, split


def fake_quantize(
    x: Float[np.ndarray, "*shape"],
    scale: Float[np.ndarray, "*channels"],
    *,
    bits: int,
    axis: int | None = None,
    group: int | None = None,
    zero_point: Int[np.ndarray, "*channels"] | None = None,
    signed: bool = True,
) -> Float[np.ndarray, "*shape"]:
    outer, channels, inner = split(x.shape, axis, group)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    s = scale.astype(wide).reshape(1, channels, 1)
    z = np.zeros((1, 1, 1), wide) if zero_point is None else zero_point.astype(wide).reshape(1, channels, 1)
    low, high = limits(bits, signed)
    places = np.clip(np.rint(x.astype(wide).reshape(outer, channels, inner) * np.reciprocal(s)) + z, low, high)
    return ((places - z) * s).reshape(x.shape).astype(x.dtype)
