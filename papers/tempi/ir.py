"""Streams over dense bytes: the tree that a datatype is translated to, the passes that bring it to a canonical form.

A tree is a chain of streams that ends in dense bytes. Its loops, the outermost first, visit the bytes in the order of the
type map. *Two* normal forms are reached from it by the same passes:

- ``canonical``: the paper's. Streams are sorted by stride, so types that hold the same bytes look the same.
- ``ordered``: without the sorting, so that its loops still pack in the order of the type map, which MPI prescribes.

They differ only where a type visits memory out of order (a transpose, say), and there packing by the canonical form would
give bytes that another rank's datatype of the same signature does not expect.

Source: the paper, sections 3.1 and 3.2, and ``types.cpp`` of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from papers.tempi.datatypes import Contiguous, Datatype, Indexed, Named, Resized, Subarray, Vector


@dataclass(frozen=True)
class Dense:
    """``extent`` bytes side by side, the first at ``offset``."""

    offset: int
    extent: int

    @property
    def size(self) -> int:
        return self.extent


@dataclass(frozen=True)
class Stream:
    """``count`` copies of what is below, ``stride`` bytes apart, the first at ``offset``."""

    offset: int
    stride: int
    count: int
    child: Tree

    @property
    def size(self) -> int:
        return self.count * self.child.size


Tree = Dense | Stream


@dataclass(frozen=True)
class StridedBlock:
    """``counts[0]`` bytes side by side (``strides[0]`` is 1), repeated ``counts[i]`` times ``strides[i]`` bytes apart.

    The innermost loop comes first. ``start`` is the offset of the first byte of the type map. Blocks are equal if these
    three are: types of one canonical form may still have different extents.
    """

    start: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]
    extent: int = field(compare=False)

    @property
    def size(self) -> int:
        bytes_ = 1
        for count in self.counts:
            bytes_ *= count
        return bytes_

    @property
    def span(self) -> tuple[int, int]:
        """Lowest byte, and the one behind the highest."""
        reach = [(count - 1) * stride for count, stride in zip(self.counts, self.strides, strict=True)]
        return self.start + sum(min(0, each) for each in reach), self.start + sum(max(0, each) for each in reach) + 1

    @property
    def disjoint(self) -> bool:
        """Whether no byte is visited twice for sure: each loop steps over all that the smaller strides reach."""
        reach = 1
        for stride, count in sorted((abs(stride), count) for stride, count in zip(self.strides, self.counts, strict=True)):
            if stride < reach and count > 1:
                return False
            reach += (count - 1) * stride
        return True


def translate(datatype: Datatype) -> Tree | None:
    """The tree of a datatype, or None where it has no regular strides (or no bytes) and stays the library's business.

    Beyond the paper, resized types are looked through and indexed ones whose blocks are equal and equally far apart are
    recognised as vectors.
    """
    if datatype.size == 0:
        return None
    match datatype:
        case Named(_, size, width):
            return Dense(0, size) if size == width else None
        case Contiguous(count, old):
            return _over(old, [(0, old.extent, count)])
        case Vector(count, blocklength, stride, old):
            return _over(old, [(0, stride, count), (0, old.extent, blocklength)])
        case Subarray(_, _, _, old):
            return _over(old, [(start * stride, stride, count) for stride, start, count in datatype.axes()])
        case Indexed():
            loops = regular(datatype.lengths, datatype.displacements)
            return loops and _over(datatype.old, [*loops[0], (0, datatype.old.extent, loops[1])])
        case Resized(_, _, old):
            return translate(old)
    return None


def regular(lengths: tuple[int, ...], displacements: tuple[int, ...]) -> tuple[list[tuple[int, int, int]], int] | None:
    """The streams (offset, stride, count) of blocks that lie on a grid of any depth, and the length of a block; or None.

    The steps between blocks are those of nested loops: the innermost loop is the longest line of equal steps that begins at
    the first block; the lines' first blocks are then looked at in the same way.
    """
    kinds = set(lengths) - {0}
    if len(kinds) != 1:
        return None
    starts = np.array(displacements, np.int64)
    if 0 in lengths:
        starts = starts[np.array(lengths) > 0]
    first, streams = int(starts[0]), []
    while starts.size > 1:
        steps = np.diff(starts)
        other = np.flatnonzero(steps != steps[0])
        count = int(other[0]) + 1 if other.size else starts.size
        if starts.size % count:
            return None
        grid = starts.reshape(-1, count)
        if (np.diff(grid, axis=1) != steps[0]).any():
            return None
        streams.append((0, int(steps[0]), count))
        starts = grid[:, 0]
    return [(first, 0, 1), *streams[::-1]], kinds.pop()


def canonical(tree: Tree) -> Tree:
    """The paper's canonical form: all passes until nothing changes."""
    return _until_fixed(tree, (swap, fold, flatten, elide))


def ordered(tree: Tree) -> Tree:
    """The normal form that keeps the order of the type map: all passes but the swap."""
    return _until_fixed(tree, (fold, flatten, elide))


def steps(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """(pass, tree after it) wherever a pass changes the tree on its way to the canonical form."""
    changed = True
    while changed:
        changed = False
        for rewrite in (swap, fold, flatten, elide):
            new = rewrite(tree)
            if new != tree:
                changed, tree = True, new
                yield rewrite.__name__, tree


def swap(tree: Tree) -> Tree:
    """The larger stride goes on top."""
    if not isinstance(tree, Stream) or not isinstance(tree.child, Stream):
        return tree
    upper, lower = (tree, tree.child) if tree.stride >= tree.child.stride else (tree.child, tree)
    return _with(upper, swap(_with(lower, tree.child.child)))


def fold(tree: Tree) -> Tree:
    """A stream whose copies of dense bytes lie side by side is dense."""
    if not isinstance(tree, Stream):
        return tree
    child = fold(tree.child)
    if isinstance(child, Dense) and tree.stride == child.extent:
        return Dense(tree.offset + child.offset, tree.count * child.extent)
    return _with(tree, child)


def flatten(tree: Tree) -> Tree:
    """Two streams are one where the outer goes on just as the inner would."""
    if not isinstance(tree, Stream):
        return tree
    child = flatten(tree.child)
    if isinstance(child, Stream) and tree.stride == child.count * child.stride:
        return Stream(tree.offset + child.offset, child.stride, tree.count * child.count, child.child)
    return _with(tree, child)


def elide(tree: Tree) -> Tree:
    """A stream of one copy is that copy, moved by the stream's offset."""
    if not isinstance(tree, Stream):
        return tree
    child = elide(tree.child)
    if tree.count > 1:
        return _with(tree, child)
    offset = tree.offset + child.offset
    return Dense(offset, child.extent) if isinstance(child, Dense) else Stream(offset, child.stride, child.count, child.child)


def strided_block(tree: Tree, extent: int) -> StridedBlock:
    """The parameters of a tree's loops, the innermost first."""
    start, loops = 0, []
    while isinstance(tree, Stream):
        start += tree.offset
        loops.append((tree.count, tree.stride))
        tree = tree.child
    loops.append((tree.extent, 1))
    counts, strides = zip(*loops[::-1], strict=True)
    return StridedBlock(start + tree.offset, counts, strides, extent)


def show(tree: Tree, indent: int = 0) -> str:
    """The tree as text, a node a line."""
    pad = "  " * indent
    if isinstance(tree, Dense):
        return f"{pad}dense {tree.extent} B at {tree.offset}"
    at = f" at {tree.offset}" if tree.offset else ""
    return f"{pad}stream of {tree.count}, {tree.stride} B apart{at}\n{show(tree.child, indent + 1)}"


def _with(stream: Stream, child: Tree) -> Stream:
    return stream if child is stream.child else Stream(stream.offset, stream.stride, stream.count, child)


def _over(old: Datatype, loops: list[tuple[int, int, int]]) -> Tree | None:
    """Streams (offset, stride, count), the outermost first, over the tree of the old type."""
    tree = translate(old)
    for offset, stride, count in reversed(loops):
        tree = tree and Stream(offset, stride, count, tree)
    return tree


def _until_fixed(tree: Tree, passes: tuple[Callable[[Tree], Tree], ...]) -> Tree:
    while True:
        before = tree
        for rewrite in passes:
            tree = rewrite(tree)
        if tree == before:
            return tree
