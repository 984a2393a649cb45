"""Optimizer state in pages: some are resident under a budget, the rest lie in files, and the least used goes first.

Stands on :mod:`common.offload`: an ``Arena`` is the memory with the hard budget, a ``FileTier`` is what lies below it, and
its ``Trace`` counts every byte that moves. Imports neither PyTorch nor JAX.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.offload import Arena, Block, FileTier, Trace

KIB = 1024
PAGE_SIZES = (64 * KIB, 2048 * KIB)
"""Least and most bytes of a page."""
STATES = 2
"""Numbers that Adam keeps for each parameter: the mean of its gradient and of its square."""


class PageStore:
    """Pages of float32 or float64 that are used one after the other, of which ``budget`` bytes are resident.

    A page that is not resident is read from its file (a fault); if there is no room for it, the page that was used least
    recently is written to its file and leaves (an eviction). A page that was never used is zero and costs no read.

    Args:
        budget: bytes of memory for pages, and for what :meth:`reserve` takes beside them.
        folder: of the files.
        page: bytes of a page, a power of two between 64 KiB and 2 MiB.

    Attributes:
        faults, evictions, hits: counted since the start.
        trace: every read and write, with its bytes and times.

    Raises:
        ValueError: a page size that is not offered; a budget below one page, with the least that would do.
    """

    def __init__(self, budget: int, folder: Path, *, page: int = 256 * KIB):
        if page & (page - 1) or not PAGE_SIZES[0] <= page <= PAGE_SIZES[1]:
            raise ValueError(f"a page of {page} bytes; wanted a power of two from {PAGE_SIZES[0]} to {PAGE_SIZES[1]}")
        if budget < page:
            raise ValueError(f"a budget of {budget} bytes holds no page; wanted at least one page, {page} bytes")
        self.page, self.trace = page, Trace()
        self.faults = self.evictions = self.hits = 0
        self._arena = Arena(budget)
        self._files = FileTier(folder, threads=1, trace=self.trace)
        self._resident: OrderedDict[str, Block] = OrderedDict()
        self._known: set[str] = set()

    @property
    def resident(self) -> int:
        """Bytes of the pages in memory."""
        return len(self._resident) * self.page

    @property
    def peak(self) -> int:
        """Most bytes that pages and reservations have held together."""
        return self._arena.peak

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Block]:
        """The page of a name, in memory and to be written to until the block ends."""
        if name in self._resident:
            self.hits += 1
            self._resident.move_to_end(name)
        else:
            self._make_room(self.page)
            block = self._arena.allocate(self.page, name)
            if name in self._known:
                self.faults += 1
                self._files.read(name, block.numpy()).wait()
            else:
                self._known.add(name)
                block.numpy()[:] = 0
            self._resident[name] = block
        yield self._resident[name]

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Take memory from the same budget for something else, such as the activations of a long sequence.

        Pages are evicted until it fits; they come back when they are used.

        Raises:
            common.offload.OutOfBudget: it does not fit into the budget even without pages.
        """
        self._make_room(size)
        with self._arena.allocate(max(size, 1), "activations"):
            yield

    def moved(self) -> dict[str, int]:
        """Bytes read from and written to files."""
        counted = self.trace.bytes()
        return {lane: counted.get(lane, 0) for lane in ("read", "write")}

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> PageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_room(self, size: int) -> None:
        """Evict until there is a hole of this size, or nothing left to evict."""
        while self._resident and not self._fits(size):
            name, block = self._resident.popitem(last=False)
            self.evictions += 1
            self._files.write(name, block.numpy()).wait()
            block.free()

    def _fits(self, size: int) -> bool:
        from common.offload import OutOfBudget

        if self._arena.free < self._arena.rounded(max(size, 1)):
            return False
        try:
            self._arena.allocate(max(size, 1), "probe").free()
        except OutOfBudget:  # enough in all, but in pieces
            return False
        return True


class Slices:
    """How a flat parameter lies in pages: page ``name/i`` holds its ``i``-th slice of both states, one after the other."""

    def __init__(self, name: str, count: int, itemsize: int, page: int):
        self.each = page // (STATES * itemsize)
        self.parts = [
            (f"{name}-{i}", slice(i * self.each, min((i + 1) * self.each, count))) for i in range(-(-count // self.each))
        ]
        self.second = self.each * itemsize
        """Byte of the page at which the second state begins."""


def views(block: Block, kind: np.dtype, count: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """The two states of a page."""
    return block.numpy(kind, (count,)), block.numpy(kind, (count,), start=second)
