"""The movement of blocks in PyTorch: they come into an arena, are visited in order, and go back, three at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.architecture import Transformer
from common.models.transformer_torch import TransformerLM
from common.offload import Arena, Block, Handle, OutOfBudget, Trace, copy_queue, here
from papers.zo2.memory_model import SLOTS, arena_bytes
from papers.zo2.tiers import Tier
from papers.zo2.units import Parameter, Unit, units

Tensors = list[tuple[Parameter, Tensor]]
Visit = Callable[[Unit, nn.Module, Tensors], None]


@dataclass(frozen=True)
class Link:
    """The copies between host and device: speed and latency emulate a link where there is no GPU; None and 0: at full speed."""

    bytes_per_second: float | int | None = None
    latency: float | int = 0.0


class Stream:
    """A decoder of which the embedding, the last norm and the head are on the device, and the blocks on their way.

    Args: see :class:`papers.zo2.zo2_torch.ZO2`. ``plus`` asks for a second copy of a tied embedding.

    Attributes:
        ends: a model whose embedding, positions, last norm and head are the resident ones.
        first, tail: their tensors. ``plus``: the second copy of the first unit's, or None.
    """

    def __init__(
        self,
        architecture: Transformer,
        tier: Tier,
        arena: Arena,
        *,
        dtype: torch.dtype,
        wire: torch.dtype,
        overlap: bool,
        bucket: bool,
        offloaded: Sequence[int] | None,
        plus: bool,
        link: Link,
        trace: Trace,
    ) -> None:
        self.units, self.tier, self.arena, self.trace = units(architecture), tier, arena, trace
        self.dtype, self.wire, self.overlap, self.bucket = dtype, wire, overlap, bucket
        depth = architecture.depth
        self.offloaded = list(range(depth)) if offloaded is None else sorted(set(offloaded))
        if not self.offloaded or self.offloaded[0] < 0 or self.offloaded[-1] >= depth:
            raise ValueError(f"the offloaded blocks are {self.offloaded}; wanted some of 0 to {depth - 1}")
        plus = plus and self.units.tied
        needed = arena_bytes(self.units, dtype.itemsize, wire.itemsize, len(self.offloaded), plus, bucket, arena.rounded)
        if needed > arena.free:
            what = f"the resident weights and {SLOTS} blocks"
            raise OutOfBudget(arena.kind, what, needed, arena.free, arena.free, arena.budget)
        self.ends = TransformerLM(dataclasses.replace(architecture, depth=1), dtype=dtype).requires_grad_(False)
        self.rotary = getattr(self.ends, "rotary", None)
        if self.rotary is not None:
            self.rotary = self.rotary.to(arena.device)
        pattern, self.first, self.tail = self.ends.blocks[0], self._reside(self.units.first), self._reside(self.units.tail)
        self.plus = (
            self._view_all(arena.allocate(self.units.first.count * dtype.itemsize, "plus"), self.units.first) if plus else None
        )
        self._stay = {}
        for i in (i for i in range(depth) if i not in self.offloaded):
            module = copy.deepcopy(pattern)
            self._stay[i] = (module, self._reside(self.units.blocks[i], module))
        self._open_slots(pattern)
        throttle = {} if arena.device != "cpu" else dataclasses.asdict(link)
        self._up, self._down = (copy_queue(lane, trace=trace, device=arena.device, **throttle) for lane in ("upload", "offload"))

    def run(self, visit: Visit, write_back: bool = True) -> None:
        """Visit all units in order; those that travel come, and go back if they may have changed."""
        travel, arriving = list(self.offloaded), dict[int, Handle]()
        with self.trace.span("first", "compute"):
            visit(self.units.first, self.ends, self.first)
        for index, unit in enumerate(self.units.blocks):
            if index in self._stay:
                with self.trace.span(unit.name, "compute"):
                    visit(unit, *self._stay[index])
                continue
            for coming in travel[: 2 if self.overlap else 1]:
                if coming not in arriving:
                    arriving[coming] = self._upload(coming)
            travel.pop(0)
            arriving.pop(index).wait()
            with self.trace.span(unit.name, "compute"):
                module, tensors, packed = self._unpack(index, unit)
                visit(unit, module, tensors)
                if write_back and self._wide is not None:
                    for narrow, (_, tensor) in zip(packed, tensors, strict=True):
                        narrow.copy_(tensor)
            self._leave(index, write_back)
            if not self.overlap:
                self.settle()
        with self.trace.span("tail", "compute"):
            visit(self.units.tail, self.ends, self.tail)

    def load(self, of: Callable[[Unit], Mapping[str, np.ndarray]]) -> None:
        """Set all weights; ``of(unit)`` gives those of one unit by their full names, so that they need not exist at once."""
        for unit, tensors in ((self.units.first, self.first), (self.units.tail, self.tail)):
            self.assign(tensors, of(unit))
        for index, unit in enumerate(self.units.blocks):
            weights = of(unit)
            if index in self._stay:
                self.assign(self._stay[index][1], weights)
                continue
            flat = torch.cat(
                [torch.from_numpy(np.array(weights[each.name])).reshape(-1).to(self.wire) for each in unit.parameters]
            )
            self.tier.fill(index, lambda raw, flat=flat: np.copyto(raw, flat.view(torch.uint8).numpy()))
        self.tier.settle()

    @staticmethod
    def assign(tensors: Tensors, weights: Mapping[str, np.ndarray]) -> None:
        for parameter, tensor in tensors:
            tensor.copy_(torch.from_numpy(np.array(weights[parameter.name])))

    def settle(self) -> None:
        """Wait for all copies."""
        for handle in self._busy:
            handle.finish()

    def close(self) -> None:
        for queue in (self._up, self._down):
            queue.close()
        self.tier.close()

    def _upload(self, index: int) -> Handle:
        """Queue the copy of a block into its slot, once the slot's last block and this block's last copy have left."""
        slot, unit = self._slot(index), self.units.blocks[index]
        place, ready = self.tier.source(index)
        after = [ready, self._busy[slot], self._left.get(index, Handle())]
        if self.bucket:
            handle = self._up.copy(self._whole(self._slots[slot], unit), self._whole(place, unit), name=unit.name, after=after)
        else:
            # What a framework does by itself: the last block's tensors are freed, each new one is allocated and copied.
            self._busy[slot].finish()
            for block in self._loose.pop(slot, []):
                block.free()
            self._loose[slot] = [self.arena.allocate(each.count * self.wire.itemsize, each.name) for each in unit.parameters]
            for target, source in zip(self._packed(slot, unit), self._views(place, unit), strict=True):
                handle = self._up.copy(target, source, name=unit.name, after=after)
        self.tier.taken(index, place, handle)
        return handle

    def _leave(self, index: int, write_back: bool) -> None:
        """Queue the copy of a block back to the host, if it is to be kept."""
        slot, unit, handle = self._slot(index), self.units.blocks[index], here(self.arena.device)
        if write_back:
            place, after = self.tier.target(index), [handle]
            if self.bucket:
                handle = self._down.copy(
                    self._whole(place, unit), self._whole(self._slots[slot], unit), name=unit.name, after=after
                )
            else:
                for target, source in zip(self._views(place, unit), self._packed(slot, unit), strict=True):
                    handle = self._down.copy(target, source, name=unit.name, after=after)
            self.tier.given(index, place, handle)
            self._left[index] = handle
        self._busy[slot] = handle

    def _unpack(self, index: int, unit: Unit) -> tuple[nn.Module, Tensors, list[Tensor]]:
        """The module and its tensors, widened where the wire is narrower than the computation; and the tensors that came."""
        slot = self._slot(index)
        packed = self._packed(slot, unit)
        module, tensors = self._modules[slot if self.bucket and self._wide is None else 0]
        if self._wide is not None:
            for wide, narrow in zip(tensors, packed, strict=True):
                wide.copy_(narrow)
        elif not self.bucket:
            tensors = packed
            _bind(module, unit, packed)
        return module, list(zip(unit.parameters, tensors, strict=True)), packed

    def _open_slots(self, pattern: nn.Module) -> None:
        unit = self.units.blocks[self.offloaded[0]]
        size = unit.count * self.wire.itemsize
        self._busy, self._left, self._loose = [Handle() for _ in range(SLOTS)], dict[int, Handle](), dict[int, list[Block]]()
        self._slots = [self.arena.allocate(size, f"slot {i}") for i in range(SLOTS)] if self.bucket else []
        self._wide = self.arena.allocate(unit.count * self.dtype.itemsize, "wide") if self.wire != self.dtype else None
        self._modules: list[tuple[nn.Module, list[Tensor]]] = []
        for place in [self._wide] if self._wide is not None else self._slots or [None]:
            module, tensors = copy.deepcopy(pattern), [] if place is None else [t for _, t in self._view_all(place, unit)]
            _bind(module, unit, tensors)
            self._modules.append((module, tensors))

    def _slot(self, index: int) -> int:
        return self.offloaded.index(index) % SLOTS

    def _packed(self, slot: int, unit: Unit) -> list[Tensor]:
        """The tensors of a block as they came."""
        if self.bucket:
            return self._views(self._slots[slot], unit)
        return [block.torch(self.wire, each.shape) for each, block in zip(unit.parameters, self._loose[slot], strict=True)]

    def _whole(self, place: Block, unit: Unit) -> Tensor:
        return place.torch(self.wire, (unit.count,))

    def _views(self, place: Block, unit: Unit) -> list[Tensor]:
        return [place.torch(self.wire, each.shape, each.start * self.wire.itemsize) for each in unit.parameters]

    def _view_all(self, place: Block, unit: Unit) -> Tensors:
        return [(each, place.torch(self.dtype, each.shape, each.start * self.dtype.itemsize)) for each in unit.parameters]

    def _reside(self, unit: Unit, module: nn.Module | None = None) -> Tensors:
        """Room in the arena for a unit that stays; the parameters of its module are bound to it."""
        tensors = self._view_all(self.arena.allocate(unit.count * self.dtype.itemsize, unit.name), unit)
        _bind(module or self.ends, unit, [tensor for _, tensor in tensors])
        return tensors


def _bind(module: nn.Module, unit: Unit, tensors: list[Tensor]) -> None:
    """Let the parameters of a module be these tensors, if there are any."""
    named = dict(module.named_parameters())
    for parameter, tensor in zip(unit.parameters, tensors, strict=False):
        named[parameter.name.removeprefix(unit.prefix)].data = tensor
