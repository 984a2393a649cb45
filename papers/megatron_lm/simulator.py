"""When does each pass of a schedule begin and end? Events with times for each pass and a latency for each message."""

from __future__ import annotations

from common.events import Timeline
from papers.megatron_lm.schedule import Op, Schedule, needs, order


def simulate(schedule: Schedule, chunks: int, forward: float, backward: float, latency: float = 0.0) -> Timeline:
    """The timeline of one batch, a resource for each rank.

    Args:
        forward, backward: seconds of one microbatch through *all* layers of a rank; a chunk takes a v-th of them.
        latency: seconds from the end of a pass until its result is on another rank.
    """
    line = Timeline()
    ends: dict[tuple[int, Op], float] = {}
    free = [0.0] * len(schedule)
    for rank, op in order(schedule, chunks):
        ready = (
            ends[other, which] + (latency if other != rank else 0.0) for other, which in needs(rank, op, len(schedule), chunks)
        )
        start = max(free[rank], *ready, 0.0)
        free[rank] = ends[rank, op] = start + (forward if op.forward else backward) / chunks
        line.add(
            f"rank {rank}", "forward" if op.forward else "backward", start, free[rank], microbatch=op.microbatch, chunk=op.chunk
        )
    return line


def bubble(line: Timeline) -> float:
    """Idle time over the time of ideal work: (finish - busy) / busy of the rank that works least."""
    busy = min(line.busy(resource) for resource in line.resources)
    return (line.finish - busy) / busy
