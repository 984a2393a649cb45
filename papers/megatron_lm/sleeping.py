"""A pipeline whose stages sleep instead of computing: schedules and messages at real speed, on ranks that need no cores."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from common.distributed import Group
from common.events import Timeline
from papers.megatron_lm.engine import Passed, Pipeline
from papers.megatron_lm.schedule import Kind, generate

BOUNDARY = (1, 64, 64)
"""Shape of a message between stages: b, s, h."""


@dataclass
class Sleeper:
    """A chunk that takes ``seconds`` forward and backward."""

    seconds: tuple[float, float]
    last: bool

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor:
        time.sleep(self.seconds[0])
        return torch.zeros(()) if self.last else torch.zeros(BOUNDARY)

    def backward(self, x: Tensor | None, y: Tensor, gradient: Tensor | None) -> Tensor | None:
        time.sleep(self.seconds[1])
        return None if x is None else torch.zeros(BOUNDARY)


def sleep(
    group: Group, kind: Kind, microbatches: int, chunks: int, forward: float, backward: float, batches: int
) -> tuple[list[float], list[Passed]]:
    """Seconds of each batch, after one that warms up, and the passes of the last one.

    Args:
        forward, backward: seconds of a microbatch through all chunks of a rank.
    """
    p = group.size
    schedule = generate(kind, p, microbatches, chunks)
    stages = [Sleeper((forward / chunks, backward / chunks), chunk * p + group.rank == p * chunks - 1) for chunk in range(chunks)]
    pipeline = Pipeline(group, schedule, stages, (BOUNDARY, torch.float32))
    taken = []
    for _ in range(batches + 1):
        group.barrier()
        start = time.perf_counter()
        pipeline.run()
        group.barrier()
        taken.append(time.perf_counter() - start)
    return taken[1:], pipeline.trace


def timeline(traces: list[list[Passed]]) -> Timeline:
    """The passes of all ranks on one clock, from 0; a colour for the forward and the backward passes of each chunk."""
    line = Timeline()
    start = min(trace[0].start for trace in traces)
    for rank, trace in enumerate(traces):
        for op, begin, end in trace:
            name = f"{'forward' if op.forward else 'backward'} {op.chunk}"
            line.add(f"rank {rank}", name, begin - start, end - start, microbatch=op.microbatch)
    return line
