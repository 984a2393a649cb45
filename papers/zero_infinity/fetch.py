"""The overlap engine: parameters become whole just before they are used, three hops ahead of the computation.

    slow memory --read--> host slot --copy--> slice in the arena --all-gather--> whole tensor in the arena

The first pass through a program records the order in which parameters are needed. From then on, while parameter i is used,
i+1 is gathered, i+2 copied and i+3 read (paper, section 6.2). A pass that leaves the recorded order falls back to fetching
on demand, and records anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from common.distributed import Group
from common.offload import Arena, Block, Handle, OutOfBudget, Slots, ThreadQueue, Trace
from papers.zero_infinity.partition import Layout, Partition, Unit
from papers.zero_infinity.store import Store


class Upload(NamedTuple):
    """A slice on its way into the arena; a rank that holds nothing of the tensor has neither block nor slot."""

    block: Block | None
    slot: Block | None
    handle: Handle


class Gather(NamedTuple):
    """A tensor that is being put together from all slices."""

    whole: Block
    part: Block | None
    pending: Any


class Fetcher:
    """Fetches and releases the whole tensors of one rank. All ranks call it alike; only the caller's thread touches memory.

    Args:
        units: all parameters, by number.
        slots: host memory for at least three slices.
        changed: called with (unit, block) when a tensor is whole, and with (unit, None) before its block is freed.
        overlap: False fetches everything on demand.

    Attributes:
        resident: blocks of the tensors that are whole, by number.
        orders: the recorded order of each program.
        broken: how often a recorded order was left; skipped: prefetches that found no room.
    """

    def __init__(
        self,
        group: Group,
        layout: Layout,
        units: Sequence[Unit],
        store: Store,
        arena: Arena,
        slots: Slots,
        upload: ThreadQueue,
        dtype: Any,
        changed: Callable[[Unit, Block | None], None],
        overlap: bool = True,
        trace: Trace | None = None,
    ) -> None:
        self.group, self.layout, self.units, self.store, self.arena = group, layout, units, store, arena
        self.slots, self.upload, self.dtype, self.changed, self.overlap = slots, upload, dtype, changed, overlap
        self.trace = trace or Trace()
        self.resident: dict[int, Block] = {}
        self.orders: dict[str, list[int]] = {}
        self.broken = self.skipped = 0
        self._known: list[int] | None = None
        self._seen: list[int] | None = None
        self._kept: set[int] = set()
        self._staged: dict[int, tuple[Block | None, list[Handle]]] = {}
        self._uploaded: dict[int, Upload] = {}
        self._gathering: dict[int, Gather] = {}

    @property
    def active(self) -> bool:
        return self._seen is not None

    def holds(self, index: int) -> bool:
        """Whether a tensor is whole and in use."""
        return index in self.resident and index not in self._kept

    @contextlib.contextmanager
    def program(self, name: str) -> Iterator[None]:
        """One pass, such as a training step. At its end nothing is resident."""
        self._known, self._seen = (self.orders.get(name) if self.overlap else None), []
        try:
            yield
            self.orders[name] = self._seen
        finally:
            self._seen = None
            self._drop()
            self._kept.clear()
            for index in list(self.resident):
                self._free(index)

    def need(self, index: int) -> None:
        """Make a tensor whole; returns when it may be used."""
        if self.holds(index):
            return
        assert self._seen is not None, "a tensor is needed outside of any program"
        position = len(self._seen)
        self._seen.append(index)
        if self._known is not None and (position >= len(self._known) or self._known[position] != index):
            self.broken += 1
            self._known = None
            self._drop()
        if index in self._kept:
            self._kept.discard(index)
        else:
            self._finish(index)
        self._ahead(position)

    def release(self, index: int) -> None:
        """Free a tensor, unless it is the very next that is needed."""
        if not self.holds(index):
            return
        position = len(self._seen or ())
        if self._known is not None and position < len(self._known) and self._known[position] == index:
            self._kept.add(index)
        else:
            self._free(index)

    def relieve(self) -> None:
        """Free all that is there only for later."""
        self._drop()
        for kept in list(self._kept):
            self._kept.discard(kept)
            self._free(kept)

    def _ahead(self, position: int) -> None:
        if self._known is None:
            return
        for distance, hop in ((1, self._gather), (2, self._upload), (3, self._read)):
            if position + distance < len(self._known):
                index = self._known[position + distance]
                if index not in self.resident:
                    try:
                        hop(index)
                    except (OutOfBudget, TimeoutError):  # then it is fetched on demand
                        self.skipped += 1

    def _finish(self, index: int) -> None:
        try:
            self._gather(index)
        except (OutOfBudget, TimeoutError):
            self.relieve()
            self._gather(index)
        whole, part, pending = self._gathering.pop(index)
        if pending is not None:
            with self.trace.span(self.units[index].name, "wait"):
                pending.wait()
        if part is not None:
            part.free()
        self.resident[index] = whole
        self.changed(self.units[index], whole)

    def _gather(self, index: int) -> None:
        """Hop 3."""
        if index in self._gathering:
            return
        self._upload(index)
        unit, (block, slot, handle) = self.units[index], self._uploaded[index]
        handle.finish()
        if slot is not None:
            self.slots.release(slot)
            self._uploaded[index] = Upload(block, None, handle)
        whole = self.arena.allocate(self.layout.whole(unit) * self.dtype.itemsize, unit.name)
        target = whole.torch(self.dtype)
        del self._uploaded[index]
        if self.layout.partition is Partition.slices:
            assert block is not None
            self._gathering[index] = Gather(whole, block, self.group.gather_into(target, block.torch(self.dtype)))
            return
        source = target if block is None else block.torch(self.dtype)
        target.copy_(self.group.broadcast(source, self.layout.owner(unit)))
        self._gathering[index] = Gather(whole, block, None)

    def _upload(self, index: int) -> None:
        """Hop 2."""
        if index in self._uploaded or index in self._gathering:
            return
        self._read(index)
        unit, (slot, handles) = self.units[index], self._staged[index]
        if slot is None:
            del self._staged[index]
            self._uploaded[index] = Upload(None, None, Handle())
            return
        size = self.layout.held(unit, self.group.rank) * self.dtype.itemsize
        block = self.arena.allocate(size, f"slice of {unit.name}")
        del self._staged[index]
        handle = self.upload.copy(block.numpy(), slot.numpy()[:size], name=unit.name, after=handles)
        self._uploaded[index] = Upload(block, slot, handle)

    def _read(self, index: int) -> None:
        """Hop 1."""
        if index in self._staged or index in self._uploaded or index in self._gathering:
            return
        chunks = self.layout.chunks(self.units[index], self.group.rank)
        if not chunks:
            self._staged[index] = None, []
            return
        # Nobody but this thread gives slots back, so waiting for one would be for ever.
        slot = self.slots.acquire(timeout=0)
        content, item = slot.numpy(), self.dtype.itemsize
        handles = [
            self.store.get(weight_name(index, number), content[start * item : end * item])
            for number, (start, end) in enumerate(chunks)
        ]
        self._staged[index] = slot, handles

    def _drop(self) -> None:
        """Give up what is under way."""
        for whole, part, pending in self._gathering.values():
            if pending is not None:
                pending.wait()
            whole.free()
            if part is not None:
                part.free()
        for block, slot, handle in self._uploaded.values():
            handle.finish()
            if block is not None:
                block.free()
            if slot is not None:
                self.slots.release(slot)
        for staged, handles in self._staged.values():
            for handle in handles:
                handle.finish()
            if staged is not None:
                self.slots.release(staged)
        self._gathering.clear()
        self._uploaded.clear()
        self._staged.clear()

    def _free(self, index: int) -> None:
        self.changed(self.units[index], None)
        self.resident.pop(index).free()


def weight_name(index: int, chunk: int) -> str:
    return f"{index:04d} weight {chunk}"
