"""Executes any valid schedule on one rank of a pipeline: passes in the order of the schedule, messages as they are needed.

Messages between two ranks arrive in the order they are sent, and a rank sends in the order of its schedule, which all ranks
know. So each posts its receives in the order of the *sender's* schedule, one pass ahead of need, and sends without
waiting: a schedule without a circle of waits cannot hang, whatever its kind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from common.distributed import Group, Pending
from papers.megatron_lm.schedule import Op, Schedule, neighbour


@runtime_checkable
class Chunk(Protocol):
    """A piece of the model. The last stage's result is a loss; its backward gets no gradient."""

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor: ...

    def backward(self, x: Tensor | None, y: Tensor, gradient: Tensor | None) -> Tensor | None: ...


class Passed(NamedTuple):
    """One pass as it happened, in seconds of the machine's monotonic clock, which its processes share."""

    op: Op
    start: float
    end: float


class Pipeline:
    """One rank of a pipeline.

    Args:
        group: the pipeline's ranks.
        schedule: of all ranks.
        chunks: this rank's pieces.
        boundary: shape and dtype of what goes from stage to stage.
        tensor: the ranks that hold the same activations. With ``scatter`` each sends its share of a message and they gather
            the shares behind the network: 1 / t of the bytes across nodes (paper, section 4.1).

    Attributes:
        trace: the passes of the last run.
        most_in_flight: most passes whose activations were kept at once.
    """

    def __init__(
        self,
        group: Group,
        schedule: Schedule,
        chunks: Sequence[Chunk],
        boundary: tuple[tuple[int, ...], torch.dtype],
        tensor: Group | None = None,
        scatter: bool = True,
    ) -> None:
        self.group, self.schedule, self.chunks = group, schedule, list(chunks)
        self.shape, self.dtype = boundary
        self.tensor = tensor if tensor is not None and tensor.size > 1 and scatter else None
        self.trace: list[Passed] = []
        self.most_in_flight = 0
        size = torch.Size(self.shape).numel()
        if self.tensor and size % self.tensor.size:
            raise ValueError(f"a message of {size} numbers cannot be scattered over {self.tensor.size} ranks")

    def run(self) -> list[Tensor]:
        """One batch; returns the losses of its microbatches in order, on the rank with the last stage, else nothing."""
        ops = self.schedule[self.group.rank]
        mail = _Mail(self)
        kept: dict[tuple[int, int], tuple[Tensor | None, Tensor, Pending | None]] = {}
        losses: dict[int, Tensor] = {}
        self.trace, self.most_in_flight = [], 0
        last: list[Pending] = []
        for i, op in enumerate(ops):
            mail.expect(op)
            arrived = mail.take(op)
            if i + 1 < len(ops):
                mail.expect(ops[i + 1])
            start = time.monotonic()
            if op.forward:
                x = None if arrived is None else arrived.requires_grad_()
                y = self.chunks[op.chunk].forward(op.microbatch, x)
                self.trace.append(Passed(op, start, time.monotonic()))
                kept[op.microbatch, op.chunk] = x, y, mail.send(op, y)
                self.most_in_flight = max(self.most_in_flight, len(kept))
                if self._sends_nothing(op):
                    losses[op.microbatch] = y.detach()
                continue
            x, y, sent = kept.pop((op.microbatch, op.chunk))
            if sent is not None:
                sent.wait()  # its gradient is here, so it has long arrived: this frees the memory
            gradient = self.chunks[op.chunk].backward(x, y, arrived)
            del x, y
            self.trace.append(Passed(op, start, time.monotonic()))
            if gradient is not None and (pending := mail.send(op, gradient)) is not None:
                last.append(pending)
        for pending in last:
            pending.wait()
        return [losses[microbatch] for microbatch in sorted(losses)]

    def _sends_nothing(self, op: Op) -> bool:
        return self.other(op, self.group.rank, ahead=True) is None

    def other(self, op: Op, rank: int, ahead: bool) -> tuple[int, int] | None:
        """(rank, chunk) that a pass on ``rank`` sends to or hears from."""
        p, v = self.group.size, len(self.chunks)
        return neighbour(op.chunk * p + rank, op.forward, p, v, ahead)


class _Mail:
    """The messages of one run."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.group = pipeline, pipeline.group
        self.posted: dict[Op, tuple[Tensor, Pending]] = {}
        self.coming = {rank: self._from(rank) for rank in range(self.group.size) if rank != self.group.rank}

    def _from(self, source: int) -> Iterator[Op]:
        """The passes here that a rank sends to, in the order it does."""
        for op in self.pipeline.schedule[source]:
            to = self.pipeline.other(op, source, ahead=True)
            if to is not None and to[0] == self.group.rank:
                yield op._replace(chunk=to[1])

    def expect(self, op: Op) -> None:
        """Post the receives up to that of a pass."""
        source = self.pipeline.other(op, self.group.rank, ahead=False)
        while source is not None and op not in self.posted:
            coming = next(self.coming[source[0]])
            shape, tensor = self.pipeline.shape, self.pipeline.tensor
            size = torch.Size(shape).numel() // (tensor.size if tensor else 1)
            room = torch.empty(size, dtype=self.pipeline.dtype, device=self.group.device)
            self.posted[coming] = room, self.group.exchange(receive=[(room, source[0])])

    def take(self, op: Op) -> Tensor | None:
        """What a pass needs from another rank; None at the ends of the model."""
        if op not in self.posted:
            return None
        room, pending = self.posted.pop(op)
        pending.wait()
        tensor = self.pipeline.tensor
        if tensor:
            whole = room.new_empty(room.numel() * tensor.size)
            tensor.gather_into(whole, room).wait()
            room = whole
        return room.view(self.pipeline.shape)

    def send(self, op: Op, result: Any) -> Pending | None:
        """Send a pass's result to the rank that needs it."""
        to = self.pipeline.other(op, self.group.rank, ahead=True)
        if to is None:
            return None
        message, tensor = result.detach().reshape(-1), self.pipeline.tensor
        if tensor:
            message = message.chunk(tensor.size)[tensor.rank]
        return self.group.exchange(send=[(message, to[0])])
