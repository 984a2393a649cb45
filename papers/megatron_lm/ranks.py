"""What the ranks of a measurement do: functions of a group that :mod:`common.distributed` runs in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.distributed import Group
from papers.megatron_lm.checkpoint import load, save
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.schedule import Kind
from papers.megatron_lm.shape import Shape, initial_weights
from papers.megatron_lm.trainer import Options, Trainer


def gradients(
    group: Group, shape: Shape, layout: Layout, seed: int, tokens: np.ndarray, options: Options
) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of one batch with the initial weights of a seed: this rank's shards."""
    trainer = Trainer(group, shape, layout, initial_weights(shape, seed), options)
    return trainer.gradients(tokens), trainer.shards("grad")


def losses(
    group: Group,
    shape: Shape,
    layout: Layout,
    seed: int,
    batches: list[np.ndarray],
    options: Options,
    folder: Path | None = None,
) -> tuple[list[float], dict[str, Any]]:
    """The loss of each batch of a training, and this rank's shards of the weights behind it.

    With a folder a checkpoint is saved there after every step, and a training that was cut short goes on from the last,
    under whatever layout; the losses are then those of the steps that were left.
    """
    trainer = Trainer(group, shape, layout, initial_weights(shape, seed), options)
    found = []
    for number in range(load(folder, trainer) if folder else 0, len(batches)):
        found.append(trainer.step(batches[number], number))
        if folder:
            save(folder, trainer, number + 1)
    return found, trainer.shards()


def traffic(group: Group, shape: Shape, layout: Layout, tokens: np.ndarray, options: Options) -> dict[str, Any]:
    """What the passes of one batch sent: bytes by group and kind, and to the next and the previous rank of the pipeline."""
    trainer = Trainer(group, shape, layout, initial_weights(shape, 0), options)
    before, to = {row["group"] + row["kind"]: row["bytes"] for row in group.traffic.rows()}, group.traffic.to.copy()
    trainer.passes(tokens)
    pp = trainer.pp
    sent = group.traffic.to - to
    return {
        "pp": pp.rank,
        "bytes": {
            (row["group"], row["kind"]): row["bytes"] - before.get(row["group"] + row["kind"], 0) for row in group.traffic.rows()
        },
        "next": int(sent[pp.ranks[(pp.rank + 1) % pp.size]]),
        "previous": int(sent[pp.ranks[(pp.rank - 1) % pp.size]]),
    }


def in_flight(group: Group, shape: Shape, tokens: np.ndarray, kind: Kind, chunks: int) -> int:
    """Most passes whose activations this rank of a pipeline kept at once."""
    layout = Layout(pipeline=group.size, chunks=chunks)
    trainer = Trainer(group, shape, layout, initial_weights(shape, 0), Options(schedule=kind, dtype=torch.float64))
    trainer.passes(tokens)
    assert trainer.pipeline is not None
    return trainer.pipeline.most_in_flight
