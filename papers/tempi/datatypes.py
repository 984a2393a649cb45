"""MPI datatypes as values: what the constructors of the standard say, without an MPI library.

A description is built by hand (tests, notebook) or decoded from a real handle (:mod:`papers.tempi.handles`). It knows its
size and bounds; where its bytes lie is said by :mod:`papers.tempi.typemap`, as a list, and by :mod:`papers.tempi.ir`, as a tree.
Words are those of the MPI standard 4.1, section 5.1. All displacements and strides are in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Named:
    """A predefined type of ``size`` bytes; pair types such as SHORT_INT have gaps, so that they are wider than their data."""

    name: str
    size: int
    width: int

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return 0, self.width

    @property
    def extent(self) -> int:
        return self.width


@dataclass(frozen=True)
class Contiguous:
    """``count`` copies of the old type, side by side."""

    count: int
    old: Datatype

    @property
    def size(self) -> int:
        return self.count * self.old.size

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return _spread(self.old, [(0, self.count)])

    @property
    def extent(self) -> int:
        return _width(self)


@dataclass(frozen=True)
class Vector:
    """``count`` blocks of ``blocklength`` copies; the blocks begin ``stride`` bytes apart."""

    count: int
    blocklength: int
    stride: int
    old: Datatype

    @property
    def size(self) -> int:
        return self.count * self.blocklength * self.old.size

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return _spread(self.old, [(i * self.stride, self.blocklength) for i in {0, self.count - 1}] if self.count else [])

    @property
    def extent(self) -> int:
        return _width(self)


@dataclass(frozen=True)
class Indexed:
    """Blocks of their own lengths at their own displacements: indexed, hindexed and their forms with one length."""

    lengths: tuple[int, ...]
    displacements: tuple[int, ...]
    old: Datatype

    @property
    def size(self) -> int:
        return sum(self.lengths) * self.old.size

    @cached_property
    def bounds(self) -> tuple[int, int]:
        blocks = list(zip(self.displacements, self.lengths, strict=True))
        if len(set(self.lengths)) == 1:  # the outermost ones say all, and lists can be long
            blocks = [(min(self.displacements), self.lengths[0]), (max(self.displacements), self.lengths[0])]
        return _spread(self.old, blocks)

    @property
    def extent(self) -> int:
        return _width(self)


@dataclass(frozen=True)
class Subarray:
    """A box of ``subsizes`` at ``starts`` in an array of ``sizes``; its bounds are those of the whole array."""

    sizes: tuple[int, ...]
    subsizes: tuple[int, ...]
    starts: tuple[int, ...]
    old: Datatype
    fortran: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.subsizes) * self.old.size

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return 0, math.prod(self.sizes) * self.old.extent

    @property
    def extent(self) -> int:
        return _width(self)

    def axes(self) -> list[tuple[int, int, int]]:
        """(stride, start, count) of each dimension, the slowest first: the last of C's, the first of Fortran's is the fastest."""
        found, stride = [], self.old.extent
        order = range(len(self.sizes)) if self.fortran else reversed(range(len(self.sizes)))
        for axis in order:
            found.append((stride, self.starts[axis], self.subsizes[axis]))
            stride *= self.sizes[axis]
        return found[::-1]


@dataclass(frozen=True)
class Struct:
    """Blocks of their own types, lengths and displacements. No byte is added at the end for alignment."""

    lengths: tuple[int, ...]
    displacements: tuple[int, ...]
    olds: tuple[Datatype, ...]

    @property
    def size(self) -> int:
        return sum(length * old.size for length, old in zip(self.lengths, self.olds, strict=True))

    @cached_property
    def bounds(self) -> tuple[int, int]:
        members = zip(self.lengths, self.displacements, self.olds, strict=True)
        ends = [_spread(old, [(at, length)]) for length, at, old in members if length]
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0, 0)

    @property
    def extent(self) -> int:
        return _width(self)


@dataclass(frozen=True)
class Resized:
    """The data of the old type between other bounds; between its own it is a duplicate."""

    low: int
    width: int
    old: Datatype

    @property
    def size(self) -> int:
        return self.old.size

    @cached_property
    def bounds(self) -> tuple[int, int]:
        return self.low, self.low + self.width

    @property
    def extent(self) -> int:
        return self.width


Datatype = Named | Contiguous | Vector | Indexed | Subarray | Struct | Resized

BYTE, INT, FLOAT, DOUBLE = Named("BYTE", 1, 1), Named("INT", 4, 4), Named("FLOAT", 4, 4), Named("DOUBLE", 8, 8)


def vector(count: int, blocklength: int, stride: int, old: Datatype) -> Vector:
    """MPI_Type_vector, whose stride is in extents of the old type."""
    return Vector(count, blocklength, stride * old.extent, old)


def _spread(old: Datatype, blocks: list[tuple[int, int]]) -> tuple[int, int]:
    """Bounds of blocks (displacement, length) of an old type; empty blocks have none."""
    low, high = old.bounds
    reach = high - low
    first = [at for at, length in blocks if length]
    last = [at + (length - 1) * reach for at, length in blocks if length]
    # The last copy of a block is its lowest where the extent is negative.
    return (min(*first, *last) + low, max(*first, *last) + high) if first else (0, 0)


def _width(datatype: Datatype) -> int:
    low, high = datatype.bounds
    return high - low
