"""Given a model and GPUs, which (t, p, d, b, v)? All that fit, the fastest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common import UserError
from papers.megatron_lm import cost
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape


class Choice(NamedTuple):
    """A layout, its seconds for an iteration, the part of it that is bubble, bytes of the fullest GPU, FLOP/s of each."""

    layout: Layout
    seconds: float
    bubble: float
    memory: float
    rate: float


def search(
    shape: Shape,
    gpus: int,
    batch: int,
    machine: cost.Machine,
    *,
    microbatches: Sequence[int] = (1, 2, 4, 8),
    chunks: Sequence[int] = (1, 2, 3, 4),
    most: int = 10,
) -> list[Choice]:
    """The fastest layouts that fit into memory.

    Raises:
        ValueError: fewer than one GPU or sequence.
        UserError: no layout divides model and batch, or none fits; it says how much the smallest needs.
    """
    if gpus < 1 or batch < 1:
        raise ValueError(f"{gpus} GPUs and a batch of {batch}; wanted 1 or more of each")
    plans = possible(shape, gpus, batch, microbatches, chunks)
    if not len(plans.tensor):
        raise UserError(f"no layout on {gpus} GPUs divides {shape.depth} layers, {shape.heads} heads and a batch of {batch}")
    found = cost.predict(np, shape, batch, plans, machine)
    fits = np.flatnonzero(found.memory <= machine.memory)
    if not len(fits):
        raise UserError(
            f"no layout on {gpus} GPUs of {machine.memory / 1e9:.0f} GB holds the model; the leanest needs "
            f"{found.memory.min() / 1e9:.0f} GB on each"
        )
    rates = cost.rate(shape, batch, plans, found)
    return [
        Choice(
            Layout(**{name: int(each[i]) for name, each in plans._asdict().items()}),
            *(float(each[i]) for each in (found.seconds, found.bubble / found.seconds, found.memory, rates)),
        )
        for i in fits[np.argsort(found.seconds[fits], kind="stable")][:most]
    ]


def possible(shape: Shape, gpus: int, batch: int, microbatches: Sequence[int], chunks: Sequence[int]) -> cost.Plan:
    """All combinations that divide what they must, as arrays."""
    sizes = [n for n in range(1, gpus + 1) if gpus % n == 0]
    t, p, v, b = (each.ravel() for each in np.meshgrid(sizes, sizes, sorted(chunks), sorted(microbatches), indexing="ij"))
    good = (gpus % (t * p) == 0) & (shape.heads % t == 0) & (shape.depth % (p * v) == 0) & ((v == 1) | (p > 1))
    d = np.where(good, gpus // (t * p), 1)
    good &= batch % (d * b) == 0
    good &= (v == 1) | (batch // (d * b) % p == 0)
    return cost.Plan(*(each[good] for each in (t, p, d, v, b)))
