"""Intermediate buffers that are kept: a slab allocator, and the arena that stands for device memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

SMALLEST = 64


class Slabs:
    """Buffers by powers of two of bytes; what is given back is taken again, so a steady state allocates nothing.

    Attributes:
        made: buffers that were allocated. taken: buffers that were handed out.
    """

    def __init__(self) -> None:
        self.free: dict[int, list[np.ndarray]] = {}
        self.made = self.taken = 0

    def take(self, size: int) -> UInt8[np.ndarray, " slab"]:
        """A buffer of at least ``size`` bytes with whatever is in it."""
        slab = max(SMALLEST, 1 << (size - 1).bit_length()) if size else SMALLEST
        self.taken += 1
        kept = self.free.setdefault(slab, [])
        if kept:
            return kept.pop()
        self.made += 1
        return np.empty(slab, np.uint8)

    def give(self, buffer: UInt8[np.ndarray, " slab"]) -> None:
        self.free[buffer.size].append(buffer)

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[UInt8[np.ndarray, " slab"]]:
        buffer = self.take(size)
        try:
            yield buffer
        finally:
            self.give(buffer)
