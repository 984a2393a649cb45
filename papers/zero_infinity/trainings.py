"""Trainings of one model, plain and by the engine, as ranks run them; what comes back is NumPy and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from common.architecture import Transformer
from common.distributed import Group
from common.models.transformer_torch import TransformerLM
from common.offload import Arena, Pool, Trace
from common.training.torch_loop import next_token_loss
from papers.zero_infinity.partition import Partition
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.zero3 import Offload, ZeRO3

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Training:
    """What is trained, and with what memory.

    Attributes:
        arena, pool: bytes of the device and of host memory that a rank may use.
        folder: of the file tier; empty: none.
    """

    architecture: Transformer
    batches: tuple[np.ndarray, ...] = field(repr=False)
    adam: Adam = Adam()
    dtype: str = "float32"
    seed: int = 1
    arena: int = 2**24
    pool: int = 2**26
    folder: str = ""
    parameters: bool = True
    chunk: int = 2**14
    resume: bool = False
    overlap: bool = True
    partition: Partition = Partition.slices
    reduce: bool = True
    recompute: bool = False

    def build(self) -> TransformerLM:
        model = TransformerLM(self.architecture, seed=self.seed, dtype=DTYPES[self.dtype])
        if self.recompute:
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        return model

    def engine(self, group: Group, **options: Any) -> ZeRO3:
        place = Offload(Path(self.folder) if self.folder else None, self.parameters)
        settings: dict[str, Any] = {
            "arena": Arena(self.arena, poison=True), "pool": Pool(self.pool), "offload": place, "adam": self.adam,
            "chunk": self.chunk, "resume": self.resume, "overlap": self.overlap, "partition": self.partition,
            "reduce": self.reduce,
        }  # fmt: skip
        return ZeRO3(self.build, group, **{**settings, **options})


def plain(training: Training) -> dict[str, Any]:
    """In one process, with PyTorch's Adam."""
    model, adam = training.build(), training.adam
    optimizer = torch.optim.AdamW(model.parameters(), adam.rate, (adam.first, adam.second), adam.epsilon, weight_decay=adam.decay)
    losses = []
    for batch in training.batches:
        loss = next_token_loss(model, torch.from_numpy(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "weights": {name: each.detach().numpy() for name, each in model.named_parameters()}}


def train(group: Group, training: Training) -> dict[str, Any]:
    """One rank's part: rows rank, rank + ranks, ... of every batch."""
    trace = Trace()
    engine = training.engine(group, trace=trace)
    losses = []
    for batch in training.batches[engine.steps :]:
        loss = engine.step(next_token_loss, torch.from_numpy(batch[group.rank :: group.size].copy()))
        losses.append(float(group.all_reduce(torch.tensor(loss, dtype=torch.float64))) / group.size)
    weights = {name: each.numpy() for name, each in engine.tensors()}
    model = sum(unit.count for unit in engine.units)
    found = {
        "losses": losses,
        "weights": weights if group.rank == 0 else {},
        "parameters": model,
        "arena": engine.arena.peak,
        "pool": engine.pool.peak,
        "traffic": {kind: group.traffic.bytes(kind=kind) for kind in ("all_gather", "reduce_scatter", "broadcast")},
        "lanes": trace.bytes(),
        "broken": engine.fetcher.broken,
        "skipped": engine.fetcher.skipped,
        "external": {name: sorted(each) for name, each in engine.hooks.external.items()},
    }
    engine.close()
    return found
