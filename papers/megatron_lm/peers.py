"""torch.distributed.pipelining beside the engine: the same stages, schedule and processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.distributed import Group
from papers.megatron_lm.engine import Pipeline
from papers.megatron_lm.schedule import Kind, generate
from papers.megatron_lm.sleeping import BOUNDARY


class Doze(torch.autograd.Function):
    """x, after a sleep; its backward pass sleeps too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: tuple[float, float]) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds[0])
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds[1])
        return gradients[0], None


class Dozing(nn.Module):
    """A stage that sleeps; its one weight lets a gradient reach it."""

    def __init__(self, seconds: tuple[float, float]) -> None:
        super().__init__()
        self.seconds, self.weight = seconds, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return Doze.apply(x * self.weight, self.seconds)


def computing(width: int) -> nn.Module:
    """A stage of two feed-forward layers."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.GELU())


class Wrapped:
    """A module as a chunk of the engine."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], targets: list[Tensor] | None) -> None:
        self.module, self.inputs, self.targets = module, inputs, targets

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor:
        y = self.module(self.inputs[microbatch] if x is None else x)
        return y if self.targets is None else F.mse_loss(y, self.targets[microbatch]) / len(self.targets)

    def backward(self, x: Tensor | None, y: Tensor, gradient: Tensor | None) -> Tensor | None:
        torch.autograd.backward(y, gradient)
        return None if x is None else x.grad


def compare(
    group: Group, sleeps: tuple[float, float] | None, microbatches: int, chunks: int, batches: int
) -> tuple[float, float, float]:
    """Median seconds of a batch under the engine and under the library, in turns, and the largest difference of a gradient
    between them over the largest gradient.

    Args:
        sleeps: seconds of a stage forward and backward; None computes.
    """
    p, m = group.size, microbatches
    torch.manual_seed(0)
    x, target = torch.randn(m, *BOUNDARY[1:]), torch.randn(m, *BOUNDARY[1:])
    modules = []
    for stage in range(p * chunks):
        torch.manual_seed(stage)
        module = computing(BOUNDARY[-1]) if sleeps is None else Dozing(sleeps)
        if stage % p == group.rank:
            modules.append(module)
    last = group.rank == p - 1
    stages = [
        Wrapped(module, list(x.split(1)), list(target.split(1)) if last and chunk == chunks - 1 else None)
        for chunk, module in enumerate(modules)
    ]
    ours = Pipeline(group, generate(Kind.interleaved, p, m, chunks), stages, (BOUNDARY, torch.float32))
    theirs = library(group, modules, m, x, target)
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    found: dict[str, Tensor] = {}
    for _ in range(batches + 1):
        for name, run in (("ours", ours.run), ("theirs", theirs)):
            for module in modules:
                module.zero_grad()
            group.barrier()
            start = time.perf_counter()
            run()
            group.barrier()
            taken[name].append(time.perf_counter() - start)
            found[name] = torch.cat([w.grad.flatten() for module in modules for w in module.parameters() if w.grad is not None])
    error = float((found["ours"] - found["theirs"]).abs().max() / found["theirs"].abs().max())
    return statistics.median(taken["ours"][1:]), statistics.median(taken["theirs"][1:]), error


def library(group: Group, modules: list[nn.Module], microbatches: int, x: Tensor, target: Tensor) -> Callable[[], Any]:
    """One batch under ScheduleInterleaved1F1B."""
    from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B

    p, device = group.size, torch.device("cpu")
    stages: list[Any] = [
        PipelineStage(module, chunk * p + group.rank, p * len(modules), device) for chunk, module in enumerate(modules)
    ]
    schedule = ScheduleInterleaved1F1B(stages, microbatches, F.mse_loss)
    given = (x,) if group.rank == 0 else ()
    wanted: dict[str, Any] = {"target": target} if group.rank == p - 1 else {}
    return lambda: schedule.step(*given, **wanted)
