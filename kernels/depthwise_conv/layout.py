"""Sizes of a convolution, and its images cut by the remainder of their places modulo the stride."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple


class Geometry(NamedTuple):
    batch: int
    height: int
    width: int
    channels: int
    kernel_height: int
    kernel_width: int
    stride: int
    dilation: int
    top: int
    """Rows of zeros above, and below."""
    left: int
    out_height: int
    out_width: int

    def taps(self) -> Iterator[tuple[int, int, int, int]]:
        """(u, v, row, column) of every tap: its index, and the place in the padded image that the output (0, 0) reads."""
        for u in range(self.kernel_height):
            for v in range(self.kernel_width):
                yield u, v, u * self.dilation, v * self.dilation

    @property
    def shift(self) -> tuple[int, int]:
        """How many whole strides the last tap lies behind the first, by axis."""
        d, s = self.dilation, self.stride
        return (self.kernel_height - 1) * d // s, (self.kernel_width - 1) * d // s

    def phase(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of one phase X_ae[m, n] = x_padded[s m + a, s n + e], 0 <= a, e < s: all of x, and all that
        ``rows`` x ``columns`` outputs read."""
        s = self.stride
        return max(-(-(self.top + self.height) // s), rows + self.shift[0]), max(
            -(-(self.left + self.width) // s), columns + self.shift[1]
        )


@functools.lru_cache(maxsize=1024)
def geometry(x: tuple[int, ...], weight: tuple[int, ...], stride: int, dilation: int, padding: int | None) -> Geometry:
    """Of the shapes of x and weight. Kept, as every call asks twice."""
    sizes = []
    for size, kernel in zip(x[1:3], weight, strict=False):
        pad = dilation * (kernel - 1) // 2 if padding is None else padding
        sizes.append((pad, (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1))
    (top, out_height), (left, out_width) = sizes
    return Geometry(x[0], x[1], x[2], x[3], weight[0], weight[1], stride, dilation, top, left, out_height, out_width)
