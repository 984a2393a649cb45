"""One strided copy on a CPU: a view of the data, whose items are whole contiguous blocks, copied to packed bytes or back.

NumPy's copy loop does the work. An item of 1, 2, 4, 8 or 16 bytes is moved as a number, any other by ``memmove``, so that
nothing is done byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from papers.tempi.ir import Stream, StridedBlock, Tree, ordered, strided_block

_NUMBERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


@dataclass(frozen=True)
class Copy:
    """``count`` objects of a datatype between memory and packed bytes, in the order of the type map.

    Attributes:
        size: packed bytes. block: contiguous bytes of an item. blocks: how many there are.
        reversible: whether it may unpack: no byte is a target twice.
    """

    size: int
    block: int
    blocks: int
    reversible: bool
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item: np.dtype[Any]
    span: tuple[int, int]

    def view(self, buffer: Any) -> np.ndarray:
        """The data as items in memory, ``buffer`` beginning at the datatype's offset 0.

        Raises:
            ValueError, TypeError, BufferError: no buffer, or one that is too small or not contiguous.
        """
        if self.span[0] < 0:
            raise ValueError(f"the datatype begins {-self.span[0]} bytes before its buffer")
        return np.ndarray(self.shape, self.item, buffer, self.start, self.strides)

    def packed(self, buffer: Any, position: int = 0) -> np.ndarray:
        """The same items packed, from ``position`` on; raises as :meth:`view`."""
        if position < 0:  # which NumPy does not notice
            raise ValueError(f"position is {position}; wanted at least 0")
        return np.ndarray(self.shape, self.item, buffer, position)

    def pack(self, source: Any, packed: Any, position: int = 0) -> None:
        np.copyto(self.packed(packed, position), self.view(source))

    def unpack(self, packed: Any, target: Any, position: int = 0) -> None:
        np.copyto(self.view(target), self.packed(packed, position))

    def unpack_part(self, packed: Any, target: Any, size: int) -> None:
        """Only the first ``size`` packed bytes, as from a message that is shorter than what receives it."""
        where = np.concatenate(list(self.offsets()))[:size]
        np.ndarray(self.span[1], np.uint8, target)[where] = np.ndarray(size, np.uint8, packed)

    def offsets(self) -> Iterator[Int64[np.ndarray, " bytes"]]:
        """The type map as arrays of byte offsets, a chunk of whole blocks at a time."""
        for at in range(0, self.blocks, CHUNK):
            index = np.unravel_index(np.arange(at, min(at + CHUNK, self.blocks)), self.shape) if self.shape else ()
            first = sum((place * stride for place, stride in zip(index, self.strides, strict=True)), np.int64(self.start))
            yield (np.reshape(first, (-1, 1)) + np.arange(self.block)).reshape(-1)


CHUNK = 2**16
"""Blocks whose offsets are written out at once."""


def copy(tree: Tree, extent: int, count: int, normal: Any = ordered) -> Copy:
    """The copy of ``count`` objects, ``extent`` bytes apart. ``normal`` gives the loops; only ``ordered`` is what MPI asks for."""
    block: StridedBlock = strided_block(normal(Stream(0, extent, count, tree)), extent * count)
    length = block.counts[0]
    return Copy(
        size=block.size,
        block=length,
        blocks=block.size // length,
        reversible=block.disjoint,
        start=block.start,
        shape=block.counts[:0:-1],
        strides=block.strides[:0:-1],
        item=np.dtype(_NUMBERS.get(length, f"V{length}")),
        span=block.span,
    )
