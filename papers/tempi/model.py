"""The model of a machine: tables of measured times, interpolated, and the method that they say is the fastest.

One text for NumPy, PyTorch and JAX arrays: the layer asks it for single numbers, tests hold the three against one another.

Source: the paper, section 5; ``measure_system.cpp`` and ``sender.cpp`` of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

METHODS = ("library", "oneshot", "staged")


def linear(grid: Float[Any, " n"], times: Float[Any, " n"], size: Float[Any, "*points"]) -> Float[Any, "*points"]:
    """Time at ``size`` bytes, linear between the two measured sizes around it.

    Below the table its first time holds; above it, its last grows in proportion: t(s) = t(s_n) s / s_n.
    """
    xp = array_namespace(grid, times, size)
    at, part, beyond = _place(xp, grid, size)
    return (times[at] * (1 - part) + times[at + 1] * part) * beyond


def bilinear(
    sizes: Float[Any, " n"],
    blocks: Float[Any, " m"],
    times: Float[Any, "n m"],
    size: Float[Any, "*points"],
    block: Float[Any, "*points"],
) -> Float[Any, "*points"]:
    """Time at (``size`` bytes, contiguous ``block`` bytes), bilinear within its cell of the table.

    Sizes outside the table as in :func:`linear`; blocks are clamped to it, as those of 512 bytes and more behave alike.
    """
    xp = array_namespace(sizes, blocks, times, size, block)
    row, down, beyond = _place(xp, sizes, size)
    column, right, _ = _place(xp, blocks, block)
    above = times[row, column] * (1 - right) + times[row, column + 1] * right
    below = times[row + 1, column] * (1 - right) + times[row + 1, column + 1] * right
    return (above * (1 - down) + below * down) * beyond


def _place(xp: Any, grid: Any, x: Any) -> tuple[Any, Any, Any]:
    """(index of the cell, position in it from 0 to 1, factor for what lies above the grid)"""
    inside = xp.minimum(xp.maximum(x, grid[0]), grid[-1])
    at = xp.sum(xp.astype(inside[..., None] >= grid[:-1], xp.int64), axis=-1) - 1
    low, high = grid[at], grid[at + 1]
    return at, (inside - low) / (high - low), xp.maximum(x / grid[-1], xp.ones_like(x))


@dataclass(frozen=True)
class Model:
    """Tables of times in seconds and what follows from them.

    Attributes:
        sizes, blocks: grids of the two-dimensional tables, in bytes.
        lengths: grid of the one-dimensional ones.
        tables: pack, unpack: the layer's (n, m); library_pack, library_unpack, library_send: the library's own, the last
            being half a ping-pong of the datatype; pingpong: half a ping-pong of bytes; d2h, h2d: copies out of the arena
            and into it.
        call: seconds that the layer adds to a message beyond its parts.
    """

    sizes: np.ndarray
    blocks: np.ndarray
    lengths: np.ndarray
    tables: Mapping[str, np.ndarray]
    call: float = 0.0

    def surface(self, name: str, size: int | float, block: int | float) -> float:
        return float(bilinear(self.sizes, self.blocks, self.tables[name], np.asarray(float(size)), np.asarray(float(block))))

    def curve(self, name: str, size: int | float) -> float:
        return float(linear(self.lengths, self.tables[name], np.asarray(float(size))))

    def send(self, method: str, size: int | float, block: int | float) -> float:
        """Seconds from the call of the sender until the receiver has its data in place:

        library = library_send
        oneshot = call + pack + pingpong + unpack
        staged  = call + pack + d2h + pingpong + h2d + unpack
        """
        if method == "library":
            return self.surface("library_send", size, block)
        ends = self.surface("pack", size, block) + self.surface("unpack", size, block) + self.curve("pingpong", size)
        return self.call + ends + (self.curve("d2h", size) + self.curve("h2d", size) if method == "staged" else 0.0)

    def best(self, size: int | float, block: int | float) -> str:
        """The method of the smallest modelled time."""
        return min(METHODS, key=lambda method: self.send(method, size, block))

    def packs(self, size: int | float, block: int | float, direction: str = "pack") -> bool:
        """Whether the layer's own copy is the faster one."""
        return self.surface(direction, size, block) < self.surface(f"library_{direction}", size, block)
