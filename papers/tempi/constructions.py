"""The types that the paper and its code build for one object in many ways, and random ones that nobody would."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from papers.tempi.datatypes import (
    BYTE,
    DOUBLE,
    FLOAT,
    INT,
    Contiguous,
    Datatype,
    Indexed,
    Named,
    Resized,
    Struct,
    Subarray,
    Vector,
    vector,
)

BOX, WITHIN = (100, 13, 47), (256, 512, 1024)
"""Bytes of the box and of the memory around it along x, y, z, as in the authors' test of equivalence."""


def boxes(box: tuple[int, int, int] = BOX, within: tuple[int, int, int] = WITHIN) -> dict[str, Datatype]:
    """One box of bytes, built in eight ways; the first six are strided by construction, two have lists of displacements."""
    (x, y, z), (row, plane) = box, (within[0], within[0] * within[1])
    rows = tuple(k * plane + j * row for k in range(z) for j in range(y))
    sizes, counts = within[::-1], box[::-1]
    return {
        "vector of one block, hvector, hvector": Vector(z, 1, plane, Vector(y, 1, row, vector(1, x, row, BYTE))),
        "vector of single bytes, hvector, hvector": Vector(z, 1, plane, Vector(y, 1, row, vector(x, 1, 1, BYTE))),
        "vector, hvector": Vector(z, 1, plane, vector(y, x, row, BYTE)),
        "vector of floats, hvector": Vector(z, 1, plane, vector(y, x // 4, row // 4, FLOAT)),
        "subarray": Subarray(sizes, counts, (0, 0, 0), BYTE),
        "vector of subarrays": vector(z, 1, 1, Subarray(sizes[1:], counts[1:], (0, 0), BYTE)),
        "hindexed": Indexed((x,) * len(rows), rows, BYTE),
        "hindexed_block of contiguous": Indexed((1,) * len(rows), rows, Contiguous(x, BYTE)),
    }


def lines(n: int) -> dict[str, Datatype]:
    """``n`` bytes side by side, built in four ways."""
    return {
        "vector of one block": vector(1, n, n, BYTE),
        "vector of single bytes": vector(n, 1, 1, BYTE),
        "subarray": Subarray((n,), (n,), (0,), BYTE),
        "contiguous of contiguous": Contiguous(1, Contiguous(n, BYTE)),
    }


def rows(size: int, block: int, stride: int) -> Vector:
    """``size`` bytes in blocks that begin ``stride`` bytes apart: the objects of the paper's two-dimensional sweep."""
    return Vector(size // block, block, stride, BYTE)


def draw(rng: np.random.Generator, depth: int = 4, irregular: float = 0.1, limit: int = 4096) -> Datatype:
    """A random nested type of at most ``limit`` bytes of data: all constructors, overlaps, negative strides, empty blocks.

    A share of ``irregular`` draws takes a struct or an index without a pattern, for which there is no canonical form.
    """
    while True:
        found = _draw(rng, depth, irregular)
        if found.size <= limit:
            return found


def draws(seed: int, count: int, **options: float) -> Iterator[Datatype]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield draw(rng, **options)  # type: ignore[arg-type]


def _draw(rng: np.random.Generator, depth: int, irregular: float) -> Datatype:
    if depth == 0 or rng.random() < 0.1:
        leaves: list[Named] = [BYTE, INT, FLOAT, DOUBLE]
        return leaves[_some(rng, 1, 0, 3)[0]]
    old = _draw(rng, depth - 1, irregular)
    n, count, length = _some(rng, 1, 1, 4)[0], _some(rng, 1, 0, 4)[0], _some(rng, 1, 0, 3)[0]
    if rng.random() < irregular:
        if rng.random() < 0.5:
            return Indexed(_some(rng, n, 0, 3), _some(rng, n, -40, 80), old)
        other = _draw(rng, depth - 1, irregular)
        if old.size and other.size:  # MPICH 5.0 divides by the size of an empty member when it packs
            return Struct(_some(rng, 2, 0, 2), _some(rng, 2, -20, 60), (old, other))
    match rng.integers(6):
        case 0:
            return Contiguous(count, old)
        case 1:
            return vector(count, length, _some(rng, 1, -3, 5)[0], old)
        case 2:
            return Vector(n, max(1, length), _some(rng, 1, -40, 120)[0], old)
        case 3:
            counts, before, behind = (_some(rng, min(n, 3), low, high) for low, high in ((1, 3), (0, 1), (0, 1)))
            sizes = tuple(map(sum, zip(counts, before, behind, strict=True)))
            return Subarray(sizes, counts, before, old, fortran=bool(rng.integers(2)))
        case 4:
            first, step = _some(rng, 1, -10, 10)[0], _some(rng, 1, -20, 60)[0]
            return Indexed((1 + length % 2,) * n, tuple(first + i * step for i in range(n)), old)
        case _:
            return Resized(_some(rng, 1, -4, 4)[0], _some(rng, 1, 0, 60)[0], old)


def _some(rng: np.random.Generator, n: int, low: int, high: int) -> tuple[int, ...]:
    """``n`` numbers from low to high, both included."""
    return tuple(rng.integers(low, high + 1, n).tolist())
