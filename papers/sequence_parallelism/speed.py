"""Time of attention over chunks, on ranks that are pinned to a core each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.distributed import Group
from common.meter import median_seconds
from papers.sequence_parallelism.alternatives_torch import ulysses_attention
from papers.sequence_parallelism.config import Config, Fault
from papers.sequence_parallelism.held import SHAPE, attentions
from papers.sequence_parallelism.linformer_torch import linformer_attention
from papers.sequence_parallelism.ring_torch import Ring, ring_attention

if TYPE_CHECKING:  # every rank imports this module
    from common.distributed import Crew
    from common.ledger import Value
    from common.runner import Run

LAPS = 50
"""Rounds that every chunk makes in the control."""


def timings(config: Config, run: Run, crew: Crew) -> dict[str, Value]:
    """Claims about time; nothing that was not asked for is timed."""
    values: dict[str, Value] = {}
    if run.wants("step_time", "overlap"):
        slow = LAPS if config.fault is Fault.slow else 0
        with run.timing():
            seconds = crew.run(2, step_seconds, config.peak_length, config.repeats, slow)[0]
        run.keep("step_seconds", seconds)
        values["step_time"] = {f"over {name}": seconds["ring"] / seconds[name] for name in ("all-gather", "all-to-all")}
        values["overlap"] = seconds["ring"] / seconds["ring, no overlap"]
    if run.wants("weak_scaling"):
        dense = config.fault is Fault.dense
        with run.timing():
            taken = {size: crew.run(size, layer_seconds, config.weak_chunk, config.repeats, dense)[0] for size in (1, 2)}
        run.keep("weak_seconds", taken)
        values["weak_scaling"] = taken[2] / taken[1]
    return {name: run.busy or value for name, value in values.items()}


def step_seconds(group: Group, length: int, repeats: int, laps: int) -> dict[str, float]:
    """Median seconds of forward and backward, by the kind of attention; the kinds take turns."""
    batch, heads, dim = SHAPE
    q, k, v = (torch.randn(batch, heads, length // group.size, dim, device=group.device).requires_grad_() for _ in range(3))
    known = {**attentions(group, laps=laps), "all-to-all": partial(ulysses_attention, group=group)}

    def step(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        group.barrier()
        attention(q, k, v).sum().backward()

    with pinned(group):
        return median_seconds({name: partial(step, each) for name, each in known.items()}, repeats)


def layer_seconds(group: Group, chunk: int, repeats: int, dense: bool, rows: int = 64) -> float:
    """Median seconds of forward and backward of an attention with its projections, a chunk on each rank."""
    batch, heads, dim = SHAPE
    width = heads * dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=group.device)

    x = draw(batch, chunk, width)
    weights = [(draw(width, width) / width).requires_grad_() for _ in range(4)]
    columns = [(draw(rows, chunk) / chunk).requires_grad_() for _ in range(2)]

    def step() -> None:
        group.barrier()
        q, k, v = ((x @ each).unflatten(-1, (heads, dim)).transpose(1, 2) for each in weights[:3])
        o = ring_attention(q, k, v, Ring(group, check=False)) if dense else linformer_attention(q, k, v, *columns, group)
        (o.transpose(1, 2).flatten(2) @ weights[3]).sum().backward()

    with pinned(group):
        return median_seconds({"step": step}, repeats, least=0.02 if group.size == 1 else 0.0)["step"]


@contextmanager
def pinned(group: Group) -> Iterator[None]:
    """Each rank on a core of its own, where the system lets one choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[group.rank % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
