"""The optimizer step on the host, over states that need not fit there: read chunk c+1, update chunk c, write chunk c-1.

A chunk's state is one record, [parameter | mean | square], in the optimizer's own precision; beside it lie the gradient and
the weight that the model computes with. What the update needs of host memory is three chunks, whatever the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch

from common.offload import Block, Handle, Slots, Trace
from papers.zero_infinity.fetch import weight_name
from papers.zero_infinity.partition import Layout, Unit
from papers.zero_infinity.reduce import gradient_name
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.store import Store, finish

DEPTH = 3
"""Chunks in host memory at once: one being read, one updated, one written."""


def record_bytes(chunk: int, dtype: torch.dtype, state: torch.dtype) -> int:
    """Host memory of one chunk: state, gradient, weight."""
    return chunk * (3 * state.itemsize + 2 * dtype.itemsize)


class Chunk:
    """Views of one chunk's parts in a slot."""

    def __init__(self, slot: Block, count: int, dtype: torch.dtype, state: torch.dtype) -> None:
        ends = [0, *(count * size for size in (3 * state.itemsize, dtype.itemsize, dtype.itemsize))]
        for i in (1, 2, 3):
            ends[i] += ends[i - 1]
        content = slot.numpy()
        self.state, self.gradient, self.weight = (content[a:b] for a, b in pairwise(ends))
        self.parameter, self.mean, self.square = slot.torch(state, (3, count))
        self.gradients, self.weights = (slot.torch(dtype, (count,), start) for start in ends[1:3])


def step_all(
    units: Iterable[Unit],
    layout: Layout,
    rank: int,
    adam: Adam,
    step: int,
    weights: Store,
    states: Store,
    slots: Slots,
    dtypes: tuple[torch.dtype, torch.dtype],
    overlap: bool = True,
    trace: Trace | None = None,
) -> None:
    """Update the slices of these parameters that a rank holds.

    Args:
        step: number of the step, from 1.
        slots: :data:`DEPTH` blocks of :func:`record_bytes`.
        dtypes: of the weights and of the state.
        overlap: False waits for each read and each write.
    """
    trace = trace or Trace()
    work = [(unit, k, end - start) for unit in units for k, (start, end) in enumerate(layout.chunks(unit, rank))]
    names = [f"{unit.name} {k}" for unit, k, _ in work]
    waiting: dict[int, tuple[Block, Chunk, list[Handle]]] = {}
    writing: dict[int, tuple[Block, list[Handle]]] = {}

    def read(i: int) -> None:
        slot = slots.acquire(timeout=0)
        unit, k, count = work[i]
        chunk = Chunk(slot, count, *dtypes)
        handles = [
            states.get(state_name(unit.index, k), chunk.state),
            states.get(gradient_name(unit.index, k), chunk.gradient, kept=False),
        ]
        waiting[i] = slot, chunk, handles

    def written(i: int) -> None:
        if i in writing:
            slot, handles = writing.pop(i)
            finish(handles)
            slots.release(slot)

    def advance(i: int) -> None:
        if i not in waiting:
            read(i)
        if overlap:
            written(i - DEPTH + 1)
            if i + 1 < len(work):
                read(i + 1)
        (unit, k, _), (slot, chunk, handles) = work[i], waiting.pop(i)
        finish(handles)
        with trace.span(names[i], "update"):
            adam.update(chunk.parameter, chunk.gradients, chunk.mean, chunk.square, step)
            chunk.weights.copy_(chunk.parameter)
        puts = [states.put(state_name(unit.index, k), chunk.state), weights.put(weight_name(unit.index, k), chunk.weight)]
        writing[i] = slot, puts
        if not overlap:
            written(i)

    try:
        for i in range(len(work)):
            advance(i)
        for i in list(writing):
            written(i)
    except BaseException:  # what is under way still uses the slots
        left = [handle for each in (*waiting.values(), *writing.values()) for handle in each[-1]]  # type: ignore[union-attr]
        with contextlib.suppress(Exception):
            finish(left)
        raise


def first_records(
    units: Sequence[Unit], layout: Layout, rank: int, weights: Store, states: Store, slots: Slots, dtypes: Any
) -> None:
    """Write the states of new weights: themselves in the state's precision, and zeros."""
    for unit in units:
        for k, (start, end) in enumerate(layout.chunks(unit, rank)):
            slot = slots.acquire(timeout=0)
            chunk = Chunk(slot, end - start, *dtypes)
            weights.get(weight_name(unit.index, k), chunk.weight).finish()
            chunk.parameter.copy_(chunk.weights)
            chunk.mean.zero_()
            chunk.square.zero_()
            states.put(state_name(unit.index, k), chunk.state).finish()
            slots.release(slot)


def state_name(index: int, chunk: int) -> str:
    return f"{index:04d} state {chunk}"
