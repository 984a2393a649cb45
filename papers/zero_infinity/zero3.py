"""ZeRO stage 3 with its states in slow memory, under an unchanged model.

    engine = ZeRO3(lambda: TransformerLM(architecture), group, arena=Arena(8 * MIB), pool=Pool(4 * MIB), offload=Offload(folder))
    loss = engine.step(next_token_loss, batch)

Hooks fetch the parameters of a module before its forward pass and release them after it; what autograd saves of a parameter
is saved as a reference, and fetched again when the backward pass asks for it. A parameter that is used outside of its
module, such as a tied embedding, is noticed when it is read, and registered with the module that read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import UserError
from common.distributed import Group
from common.offload import Arena, Pool, Slots, ThreadQueue, Trace
from papers.zero_infinity import optimizer
from papers.zero_infinity.construct import partitioned
from papers.zero_infinity.fetch import Fetcher, weight_name
from papers.zero_infinity.hooks import Hooks
from papers.zero_infinity.partition import Layout, Partition, Unit, tiles_needed
from papers.zero_infinity.records import Records
from papers.zero_infinity.reduce import Reducer
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.store import FileStore, HostStore, Store, found, place

FETCHING, LEAVING = 3, 2
"""Slices in host memory on their way up, and gradients on their way down."""


@dataclass(frozen=True)
class Offload:
    """Where the slices live.

    Attributes:
        folder: of the files; None: all in host memory.
        parameters: also the weights go to files, not only states and gradients.
        link: bytes per second of a rank's own link to host memory; None: no throttle.
        disk: bytes per second of its reads and of its writes; None: no throttle.
    """

    folder: Path | None = None
    parameters: bool = True
    link: float | None = None
    disk: float | None = None


class ZeRO3:
    """One rank of a training. All ranks construct it alike, and call it alike with their own batches.

    Args:
        build: makes the model; called once, the same on all ranks, random numbers included.
        arena: what the device may hold at once of parameters and gradients. Activations are the framework's.
        pool: host memory for all that passes, and for what lives there.
        state: dtype of the optimizer's states; by default that of the weights, but at least float32.
        chunk: elements that the optimizer reads, updates and writes at once.
        resume: go on from what the folder holds, of however many ranks (a fresh start if it holds nothing); a path: from what
            was saved there.
        overlap, partition, reduce: switches of the mechanism, for comparisons.

    Raises:
        UserError: the arena cannot hold the largest layer (says into how many tiles to cut it); the disk has no room; the
            folder holds another model's states.
        OutOfBudget: the pool is too small.
        ValueError: the model's parameters have several dtypes, or are none.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        group: Group,
        *,
        arena: Arena,
        pool: Pool,
        offload: Offload | None = None,
        adam: Adam | None = None,
        state: torch.dtype | None = None,
        chunk: int = 2**16,
        resume: bool | Path = False,
        overlap: bool = True,
        partition: Partition = Partition.slices,
        reduce: bool = True,
        trace: Trace | None = None,
    ) -> None:
        self.group, self.arena, self.pool, self.adam = group, arena, pool, adam or Adam()
        self.offload, self.overlap, self.trace = offload or Offload(), overlap, trace or Trace()
        self.layout = Layout(group.size, chunk, partition)
        self.weights, self.states = self._stores()
        saved = self._source(resume)
        with partitioned(self if saved is None else None) as built:
            self.model = build()
        self.units, self._parameters = built.named(self.model), built.parameters
        kinds = {parameter.dtype for parameter in built.parameters}
        if len(kinds) != 1:
            raise ValueError(f"the parameters have {len(kinds)} dtypes ({', '.join(map(str, kinds)) or 'none'}); wanted one")
        self.dtype = kinds.pop()
        self.state = state or torch.promote_types(self.dtype, torch.float32)
        self._check_room(fresh=saved is None)
        self.hooks = Hooks(self.model, built, self.units, self.dtype, lambda number, gradient: self.reducer.add(number, gradient))
        self._prepare(reduce)
        dtypes = self.dtype, self.state
        self.records = Records(self.units, self.layout, group.rank, self.weights, self.states, dtypes)
        if saved is None:
            with self._chunk_slots() as slots:
                optimizer.first_records(self.units, self.layout, group.rank, self.weights, self.states, slots, dtypes)
            self.records.commit(0)
        elif saved == (self.offload.folder, group.size):
            self.records.go_on(saved[0])
        else:
            self.records.load(*saved)

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return self.records.step

    def step(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> float:
        """One step of training on this rank's batch; returns its loss before the step. The gradient is the mean over ranks.

        Raises:
            OutOfSpace, DamagedFile, OutOfBudget: the step is not done. Go on with a new engine and ``resume``.
        """
        with self.hooks.running(self.fetcher, "train", gradients=True):
            value = loss(self.model, batch)
            self.hooks.forward_ends()
            value.backward()
            self.reducer.settle()
        ready, self.reducer.ready = self.reducer.ready, set()
        with self._chunk_slots() as slots:
            optimizer.step_all(
                [unit for unit in self.units if unit.index in ready], self.layout, self.group.rank, self.adam, self.steps + 1,
                self.weights, self.states, slots, (self.dtype, self.state), self.overlap, self.trace,
            )  # fmt: skip
        self.records.commit(self.steps + 1, ready)
        return float(value.detach())

    @torch.no_grad()
    def evaluate(self, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> float:
        """The loss on this rank's batch, without a step."""
        with self.hooks.running(self.fetcher, "evaluate", gradients=False):
            value = float(loss(self.model, batch))
            self.hooks.forward_ends()
        return value

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, copy) of every parameter, one after the other; all ranks must take all of them."""
        with self.fetcher.program("read"):
            for unit in self.units:
                self.fetcher.need(unit.index)
                yield unit.name, self._parameters[unit.index].detach().clone()
                self.fetcher.release(unit.index)

    def save(self, folder: Path) -> None:
        """Write weights and states as a folder that ``resume`` of any number of ranks goes on from."""
        self.records.save(folder)

    def close(self) -> None:
        """Finish what is under way and give all memory back. The model is of no use after it."""
        self.reducer.close()
        for queue in self._queues:
            queue.close()
        for slots in (self._fetching, self._leaving):
            slots.close()
        for store in self.records.stores:
            store.close()

    # Construction

    def keep(self, unit: Unit, whole: Tensor) -> None:
        """Store this rank's slice of a tensor under construction."""
        if whole.device.type == "meta":
            raise ValueError(f"{unit.name} is on the meta device; build the model where its weights have values")
        rank, item = self.group.rank, whole.element_size()
        flat = torch.zeros(self.layout.held(unit, rank), dtype=whole.dtype)
        begin = self.layout.begin(unit, rank)
        content = whole.reshape(-1)[begin : begin + len(flat)]
        flat[: len(content)] = content
        for k, (start, end) in enumerate(self.layout.chunks(unit, rank)):
            view = flat.view(torch.uint8).numpy()[start * item : end * item]
            self.weights.put(weight_name(unit.index, k), view).finish()

    def whole(self, unit: Unit, dtype: torch.dtype) -> Tensor:
        """A tensor under construction, put together from all slices."""
        held = torch.empty(self.layout.held(unit, self.group.rank), dtype=dtype)
        view = held.view(torch.uint8).numpy()
        for k, (start, end) in enumerate(self.layout.chunks(unit, self.group.rank)):
            self.weights.get(weight_name(unit.index, k), view[start * dtype.itemsize : end * dtype.itemsize]).finish()
        if self.layout.partition is Partition.slices:
            flat = torch.cat(self.group.all_gather(held))
        else:
            source = held if len(held) else torch.empty(self.layout.whole(unit), dtype=dtype)
            flat = self.group.broadcast(source, self.layout.owner(unit))
        return flat[: unit.count].view(unit.shape)

    def _stores(self) -> tuple[Store, Store]:
        """For weights, and for states and gradients."""
        if self.offload.folder is None:
            host = HostStore(self.pool)
            return host, host
        own = place(self.offload.folder, self.group.rank, self.group.size)
        files = FileStore(own, bytes_per_second=self.offload.disk, trace=self.trace)
        return files if self.offload.parameters else HostStore(self.pool), files

    def _source(self, resume: bool | Path) -> tuple[Path, int] | None:
        """Folder and number of ranks of what is to be gone on from."""
        folder = self.offload.folder if isinstance(resume, bool) else resume
        ranks = found(folder) if folder is not None else None
        self.group.agree("ranks of the saved state", ranks)
        if not resume and ranks is not None:
            raise UserError(
                f"{folder} holds the states of a training of {ranks} ranks; pass resume=True, or name an empty folder"
            )
        if isinstance(resume, Path) and ranks is None:
            raise UserError(f"{folder} holds no committed step of all ranks; name a folder that save() has written")
        return None if folder is None or ranks is None else (folder, ranks)

    def _check_room(self, fresh: bool) -> None:
        largest = max(self.units, key=lambda unit: unit.count)
        needed = 2 * (self.layout.whole(largest) + self.layout.part(largest)) * self.dtype.itemsize
        if needed > self.arena.budget:
            raise UserError(
                f"{largest.name} {largest.shape} needs {needed:,} bytes of the arena, with its gradient and slices of both; the "
                f"arena has {self.arena.budget:,}. Cut it into at least {tiles_needed(needed, self.arena.budget)} tiles "
                "(TiledLinear), or give the arena more"
            )
        if isinstance(self.states, FileStore) and fresh:
            self.states.files.require(self.group.size * self._disk_bytes())

    def _disk_bytes(self) -> int:
        """Of one rank's files: two of each that is kept, one of each gradient, each with a header and to the next page."""
        rank, item, total = self.group.rank, self.dtype.itemsize, 0
        for unit in self.units:
            sizes = [2 * 3 * self.state.itemsize, item] + [2 * item] * self.offload.parameters
            files = 3 + 2 * self.offload.parameters
            for start, end in self.layout.chunks(unit, rank):
                total += (end - start) * sum(sizes) + 2 * 4096 * files
        return total

    def _prepare(self, reduce: bool) -> None:
        largest = max(1, *(self.layout.held(unit, self.group.rank) for unit in self.units)) * self.dtype.itemsize
        self._fetching = Slots(self.pool, FETCHING, largest, "slice on its way up")
        self._leaving = Slots(self.pool, LEAVING, largest, "gradient on its way down")
        self._queues = [ThreadQueue(lane, trace=self.trace, bytes_per_second=self.offload.link) for lane in ("upload", "offload")]
        upload, offload = self._queues
        common = (self.group, self.layout, self.units)
        self.fetcher = Fetcher(
            *common, self.weights, self.arena, self._fetching, upload, self.dtype, self.hooks.changed, self.overlap, self.trace
        )
        self.reducer = Reducer(
            *common, self.states, self.arena, self._leaving, offload, self.dtype, self.fetcher.relieve, self.overlap, reduce
        )

    @contextlib.contextmanager
    def _chunk_slots(self) -> Iterator[Slots]:
        most = max(1, *(self.layout.held(unit, self.group.rank) for unit in self.units))
        size = optimizer.record_bytes(min(self.layout.chunk, most), self.dtype, self.state)
        slots = Slots(self.pool, optimizer.DEPTH, size, "chunk of the optimizer")
        try:
            yield slots
        finally:
            slots.close()
