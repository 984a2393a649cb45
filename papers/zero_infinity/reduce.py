"""Gradients leave as they come: reduce-scattered among the ranks, the slice copied to the host and stored.

While the gradient of layer i+1 is being reduced, that of layer i is on its way out (paper, section 6.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from common.distributed import Group
from common.offload import Arena, Block, Handle, OutOfBudget, Slots, ThreadQueue
from papers.zero_infinity.partition import Layout, Partition, Unit
from papers.zero_infinity.store import Store, finish


class Reducing(NamedTuple):
    number: int
    whole: Block
    part: Block | None
    pending: Any


class Reducer:
    """The way of the gradients of one rank.

    Args:
        slots: host memory for two slices.
        relieve: called when the arena is full, to free what is there only for later.
        reduce: False leaves every rank its own gradient, a fault for controls.

    Attributes:
        ready: numbers of the parameters that have a gradient in this step.
    """

    def __init__(
        self,
        group: Group,
        layout: Layout,
        units: Sequence[Unit],
        store: Store,
        arena: Arena,
        slots: Slots,
        offload: ThreadQueue,
        dtype: Any,
        relieve: Callable[[], None],
        overlap: bool = True,
        reduce: bool = True,
    ) -> None:
        self.group, self.layout, self.units, self.store, self.arena = group, layout, units, store, arena
        self.slots, self.offload, self.dtype, self.relieve = slots, offload, dtype, relieve
        self.overlap, self.reduce = overlap, reduce
        self.ready: set[int] = set()
        self._saving = ThreadQueue("save")
        self._reducing: deque[Reducing] = deque()
        self._leaving: deque[tuple[Block, Handle]] = deque()
        self._saved: list[Handle] = []

    def add(self, index: int, gradient: Any) -> None:
        """Take the whole gradient of a parameter; it may be freed when this returns."""
        unit = self.units[index]
        size = self.layout.whole(unit)
        whole = self._room(size * self.dtype.itemsize, f"gradient of {unit.name}")
        flat = whole.torch(self.dtype)
        flat[: unit.count].copy_(gradient.reshape(-1))
        flat[unit.count :] = 0
        self.ready.add(index)
        if self.layout.partition is Partition.slices:
            part = self._room(self.layout.part(unit) * self.dtype.itemsize, f"slice of the gradient of {unit.name}")
            out = part.torch(self.dtype)
            if self.reduce:
                pending = self.group.reduce_scatter_into(out, flat)
            else:
                out.copy_(flat.view(self.group.size, -1)[self.group.rank] * self.group.size)
                pending = None
            self._reducing.append(Reducing(index, whole, part, pending))
        else:
            self._reducing.append(Reducing(index, whole, None, self.group.all_reduce_into(flat)))
        self._advance(1 if self.overlap else 0)

    def settle(self) -> None:
        """Wait until all slices are stored."""
        self._advance(0)
        saved, self._saved = self._saved, []
        finish(saved)
        self.store.settle()

    def close(self) -> None:
        self._saving.close()

    def _room(self, size: int, name: str) -> Block:
        for relieve in (lambda: self._advance(0), self.relieve):
            try:
                return self.arena.allocate(size, name)
            except OutOfBudget:
                relieve()
        return self.arena.allocate(size, name)

    def _advance(self, left: int) -> None:
        while len(self._reducing) > left:
            index, whole, part, pending = self._reducing.popleft()
            if pending is not None:
                pending.wait()
            held = self.layout.held(self.units[index], self.group.rank)
            source, other = (whole, None) if part is None else (part, whole)
            if other is not None:
                other.free()
            if held:
                source.torch(self.dtype)[:held].div_(self.group.size)
                self._leave(index, source, held * self.dtype.itemsize)
            else:
                source.free()
        while len(self._leaving) > left:
            block, handle = self._leaving.popleft()
            handle.finish()
            block.free()

    def _leave(self, index: int, block: Block, size: int) -> None:
        slot = self.slots.acquire()
        content = slot.numpy()[:size]
        copied = self.offload.copy(content, block.numpy()[:size], name=self.units[index].name)
        self._leaving.append((block, copied))
        item = self.dtype.itemsize

        def save() -> None:
            try:
                chunks = self.layout.chunks(self.units[index], self.group.rank)
                puts = [
                    self.store.put(gradient_name(index, number), content[start * item : end * item], kept=False)
                    for number, (start, end) in enumerate(chunks)
                ]
                finish(puts)
            finally:
                self.slots.release(slot)

        self._saved.append(self._saving.run(save, size, name=self.units[index].name, after=[copied]))


def gradient_name(index: int, chunk: int) -> str:
    return f"{index:04d} gradient {chunk}"
