"""What all backends agree on: the limits of the grid, and x as (outer, channels, inner) with a scale for each channel."""

from __future__ import annotations

import math
from collections.abc import Sequence


def limits(bits: int, signed: bool = True) -> tuple[int, int]:
    """The smallest and the largest whole number of ``bits`` bits."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def split(shape: Sequence[int], axis: int | None, group: int | None) -> tuple[int, int, int]:
    """(outer, channels, inner)."""
    if group is not None:
        return 1, math.prod(shape) // group, group
    if axis is None:
        return 1, 1, math.prod(shape)
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
