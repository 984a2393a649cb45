"""Who holds what: every tensor is one flat array, cut into equal slices for the ranks, and slices into chunks.

Nothing here knows a framework. Positions count elements of the flat, padded tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

ALIGN = 64
"""Elements that a slice is padded to a multiple of, so that slices begin at multiples of 64 bytes in every dtype."""


class Partition(Enum):
    slices = "slices"  # every rank holds 1/ranks of every tensor (paper, section 6.1)
    owner = "owner"  # a tensor lies whole on one rank, which broadcasts it; what the paper compares with


@dataclass(frozen=True)
class Unit:
    """A parameter, by its number in the order of construction."""

    index: int
    name: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class Piece(NamedTuple):
    """Where a run of elements lies: chunk of a rank's slice, from ``start`` within it; ``position`` is its first element."""

    rank: int
    chunk: int
    start: int
    position: int
    length: int


@dataclass(frozen=True)
class Layout:
    """The cut of all tensors.

    Attributes:
        ranks: that share them.
        chunk: most elements of a chunk, the unit of reads and writes of the optimizer.
    """

    ranks: int
    chunk: int
    partition: Partition = Partition.slices

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.chunk < ALIGN or self.chunk % ALIGN:
            raise ValueError(
                f"ranks is {self.ranks} and chunk {self.chunk}; wanted at least 1 rank and a positive multiple of {ALIGN} elements"
            )

    def part(self, unit: Unit) -> int:
        """Elements of one of ``ranks`` equal slices, padding included."""
        return -(-unit.count // (self.ranks * ALIGN)) * ALIGN

    def whole(self, unit: Unit) -> int:
        return self.part(unit) * self.ranks

    def owner(self, unit: Unit) -> int:
        return unit.index % self.ranks

    def held(self, unit: Unit, rank: int) -> int:
        """Elements that a rank holds."""
        if self.partition is Partition.slices:
            return self.part(unit)
        return self.whole(unit) if rank == self.owner(unit) else 0

    def begin(self, unit: Unit, rank: int) -> int:
        """Position of the first element that a rank holds."""
        return rank * self.part(unit) if self.partition is Partition.slices else 0

    def chunks(self, unit: Unit, rank: int) -> list[tuple[int, int]]:
        """(start, end) of each chunk within the elements that a rank holds."""
        held = self.held(unit, rank)
        return [(start, min(start + self.chunk, held)) for start in range(0, held, self.chunk)]

    def pieces(self, unit: Unit, start: int, end: int) -> Iterator[Piece]:
        """Where the elements from ``start`` to ``end`` lie, in order."""
        for rank in range(self.ranks):
            base = self.begin(unit, rank)
            for number, (first, last) in enumerate(self.chunks(unit, rank)):
                low, high = max(start, base + first), min(end, base + last)
                if low < high:
                    yield Piece(rank, number, low - base - first, low, high - low)


def digest(units: Sequence[Unit]) -> str:
    """What two models must have in common for one to take the other's slices."""
    return hashlib.sha256(json.dumps([[unit.name, unit.shape] for unit in units]).encode()).hexdigest()[:16]


def tiles_needed(needed: int, budget: int) -> int:
    """Tiles that a layer must be cut into so that what needs ``needed`` bytes fits ``budget``."""
    return -(-needed // max(budget, 1))
