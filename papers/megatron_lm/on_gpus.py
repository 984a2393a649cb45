"""The paper's own scale: a row of table 1 on as many GPUs, started by torchrun or Hydra's submitit launcher."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from common import UserError
from common.distributed import Group, Ranks, started
from common.ledger import NotRun, Value
from common.runner import Run
from papers.megatron_lm import published
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape
from papers.megatron_lm.trainer import Options, Trainer

STEPS = 5


def check(row: str) -> None:
    """Refuse a row that does not exist, or whose GPUs do not."""
    if row not in published.TABLE:
        raise UserError(f"row is {row!r}; table 1 has {', '.join(published.TABLE)}")
    wanted, place = published.TABLE[row].gpus, started()
    if place is None or place.size != wanted or not torch.cuda.is_available():
        nodes = f"--nnodes={wanted // 8} --nproc-per-node=8"
        raise UserError(
            f"row {row} of table 1 needs {wanted} GPUs; start it on them with: torchrun {nodes} -m papers.megatron_lm.reproduce "
            f"preset=paper row={row}, or take preset=laptop"
        )


def claims(row: str, run: Run) -> dict[str, Value]:
    """FLOP/s of each GPU by the paper's formula, where there are GPUs."""
    values: dict[str, Value] = {
        "rate_1t": NotRun("needs 3072 GPUs; option row"),
        "scatter_gather_tp": NotRun("needs nodes of GPUs with NVLink and InfiniBand"),
    }
    if row:
        at = published.TABLE[row]
        seconds = max(Ranks(at.gpus, timeout=1800.0).run(_steps, at.shape, at.layout, at.batch))
        rate = at.shape.flops(at.batch) / (seconds * at.gpus) / 1e12
        run.keep(f"TFLOP/s on each GPU, {row}", rate)
        if row == "1008.0B":
            values["rate_1t"] = rate
    return values


def _steps(group: Group, shape: Shape, layout: Layout, batch: int) -> float:
    """Median seconds of a step in bfloat16 on random tokens, weights drawn on each rank."""
    trainer = Trainer(group, shape, layout, None, Options(dtype=torch.bfloat16, recompute=True))
    for _, weight in trainer.parameters():
        weight.data.normal_(0.0, 0.02)
    tokens = np.random.default_rng(0).integers(0, shape.vocabulary, (batch, shape.context + 1))
    taken = []
    for step in range(STEPS):
        start = time.perf_counter()
        trainer.step(tokens, step)  # ends with a loss on the host
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
