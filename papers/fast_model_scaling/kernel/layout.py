"""Sizes of a grouped convolution."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple


class Geometry(NamedTuple):
    batch: int
    height: int
    width: int
    groups: int
    each: int
    """Channels of a group."""
    out: int
    """Outputs of a group."""
    rows: int
    columns: int
    """Of the kernel."""
    stride: int
    out_height: int
    out_width: int

    @property
    def top(self) -> int:
        """Rows of zeros above, and below."""
        return (self.rows - 1) // 2

    @property
    def left(self) -> int:
        return (self.columns - 1) // 2

    def taps(self) -> Iterator[tuple[int, int]]:
        for u in range(self.rows):
            for v in range(self.columns):
                yield u, v


@functools.lru_cache(maxsize=1024)
def geometry(x: tuple[int, ...], weight: tuple[int, ...], stride: int) -> Geometry:
    """Of the shapes of x and weight."""
    (batch, height, width, channels), (rows, columns, each, outputs) = x, weight
    groups = channels // each
    return Geometry(
        batch, height, width, groups, each, outputs // groups, rows, columns, stride, -(-height // stride), -(-width // stride)
    )
