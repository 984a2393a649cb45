"""Times: one step of a large layer beside what a user would take instead, and what the decompositions cost (PyTorch)."""

from __future__ import annotations

import functools
import importlib.util
import time
import warnings
from typing import Any

import torch
from torch import nn

from common.ledger import NotRun, Value
from common.meter import median_seconds
from common.runner import Run
from papers.galore.optimizer_torch import GaLore, GaLoreAdamW, GaLoreAdamW8bit
from papers.galore.projection import Projection
from papers.galore.projection_torch import projectors


def layer_steps(rows: int, columns: int, rank: int, repeats: int, run: Run) -> Value:
    """Seconds of a step without decomposition, over those of galore-torch on the same layer; the others go to the details."""
    if not run.alone:
        return run.busy  # type: ignore[return-value]
    if importlib.util.find_spec("galore_torch") is None:
        return NotRun.without("galore-torch")
    steps = {name: optimizer.step for name, optimizer in _optimizers(rows, columns, rank).items()}
    with run.timing():
        seconds = median_seconds(steps, repeats=repeats, warmup=2, least=0.02)
    run.keep("layer_step_milliseconds", {name: 1e3 * value for name, value in seconds.items()})
    return seconds["GaLoreAdamW, here"] / seconds["GaLoreAdamW, galore-torch"]


def _optimizers(rows: int, columns: int, rank: int) -> dict[str, torch.optim.Optimizer]:
    """Each on its own copy of one layer, after its first step, which decomposes."""
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    found: dict[str, torch.optim.Optimizer] = {}

    def add(name: str, kind: Any, projection: dict[str, Any], **options: Any) -> None:
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient.clone()
        found[name] = kind([{"params": [parameter], **projection}], lr=1e-3, **options)
        found[name].step()

    ours = {"rank": rank, "gap": 10**9, "scale": 0.25}
    add("GaLoreAdamW, here", GaLoreAdamW, ours)
    add("GaLoreAdamW8bit, here", GaLoreAdamW8bit, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from galore_torch import GaLoreAdamW as Published

        theirs = {"rank": rank, "update_proj_gap": 10**9, "scale": 0.25, "proj_type": "std"}
        add("GaLoreAdamW, galore-torch", Published, theirs, no_deprecation_warning=True)
    add("AdamW, torch", torch.optim.AdamW, {}, fused=True)
    if importlib.util.find_spec("bitsandbytes") is not None:
        import bitsandbytes

        add("Adam8bit, bitsandbytes", bitsandbytes.optim.Adam8bit, {})
    return found


def decomposition_share(optimizer: GaLore, step_seconds: float, gap: int, method: str) -> float:
    """Percent of the training time that goes into decompositions every ``gap`` steps.

    Args:
        optimizer: after a training; matrices of the shapes and ranks of its projected parameters are decomposed.
        step_seconds: of a training step without decomposition.
    """
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    for group in optimizer.param_groups:
        if "rank" in group:
            projection = Projection(group["rank"], method=method)
            for parameter in group["params"]:
                gradient = torch.randn(parameter.shape, generator=generator)
                start = time.perf_counter()
                projectors(gradient, min(group["rank"], *parameter.shape), projection)
                seconds += time.perf_counter() - start
    return 100 * seconds / (seconds + gap * step_seconds)


def decompositions(rows: int, columns: int, rank: int, repeats: int) -> dict[str, dict[str, float]]:
    """Exact and randomised decomposition of a gradient-like matrix: {method: {milliseconds, captured share, overlap}}.

    Its singular values fall like 1 / k. Captured is the share of the squared norm within the directions; overlap the mean
    squared cosine with the exact ones.
    """
    generator = torch.Generator().manual_seed(0)
    short = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(n, short, generator=generator)).Q for n in (rows, columns))
    matrix = left / torch.arange(1, short + 1) @ right.mT
    choices = {name: Projection(rank, side="left", method=name) for name in ("svd", "randomized")}
    calls = {name: functools.partial(projectors, matrix, rank, choice) for name, choice in choices.items()}
    seconds = median_seconds(calls, repeats=repeats)
    exact, _ = projectors(matrix, rank, choices["svd"])
    assert exact is not None
    table = {}
    for name, choice in choices.items():
        basis, _ = projectors(matrix, rank, choice)
        assert basis is not None
        captured = ((basis.mT @ matrix).square().sum() / matrix.square().sum()).item()
        overlap = (exact.mT @ basis).square().sum().item() / rank
        table[name] = {"milliseconds": 1e3 * seconds[name], "captured": captured, "overlap": overlap}
    return table
