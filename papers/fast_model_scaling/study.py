"""Scaled networks that really run here: forward pass and training step, against what they cost on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common import meter
from common.allocations import Saved
from common.ledger import Value
from common.runner import Run
from papers.fast_model_scaling import runtime
from papers.fast_model_scaling.complexity import Complexity, complexity, traffic
from papers.fast_model_scaling.config import Config
from papers.fast_model_scaling.model_torch import Network
from papers.fast_model_scaling.scaling import RULES, scale
from papers.fast_model_scaling.specs import Spec, named, tiny


def base(name: str) -> Spec:
    return tiny(name) if name.endswith("-tiny") else named(name)


def networks(config: Config) -> dict[str, Spec]:
    """The networks that are timed, by "base, rule, s"."""
    found = {}
    for name in config.timed_bases:
        each = base(name)
        found[f"{name}, s = 1"] = each
        for s in config.timed_s:
            found |= {f"{name}, {rule}, s = {s:g}": scale(each, RULES[rule], s) for rule in config.timed_rules}
        rule = config.timed_rules[0]
        found |= {f"{name}, {rule}, s = {s:g}": scale(each, RULES[rule], s) for s in config.timed_also}
    return found


def saved_bytes(spec: Spec, batch: int) -> int:
    """Bytes that autograd keeps of a forward pass in training; on the meta device."""
    model = Network(spec.network(), None, device="meta").train()
    images = torch.empty(batch, spec.resolution, spec.resolution, 3, device="meta")
    with Saved(*model.parameters()) as saved:
        model(images)
    return saved.bytes


def saved_claim(config: Config, run: Run) -> dict[str, float]:
    """Pearson's r of log counts with log bytes that are kept."""
    specs = networks(config)
    counts, kept = _logs(list(specs.values())), [saved_bytes(each, 1) for each in specs.values()]
    moved = [traffic(each) for each in specs.values()]
    run.keep("saved", dict(zip(specs, kept, strict=True)))
    run.keep("traffic", dict(zip(specs, moved, strict=True)))
    found = {what: runtime.pearson(each, np.log(kept)) for what, each in counts.items()}
    return found | {"activations, with traffic": runtime.pearson(counts["activations"], np.log(moved))}


def cpu_claim(config: Config, run: Run) -> Value:
    """R^2 of log time here from log multiply-adds and log activations, and the correlations with each alone."""
    specs = networks(config)
    seconds: dict[str, dict[str, float]] = {"forward": {}, "training": {}}
    with run.timing():
        for name, spec in run.track(specs.items(), "networks timed"):
            both = meter.median_seconds(_passes(spec, config.timed_batch), config.repeats)
            for kind in seconds:
                seconds[kind][name] = both[kind]
    counts = _logs(list(specs.values()))
    if not config.mechanism:  # each network gets the counts of another
        order = np.random.default_rng(config.seed).permutation(len(specs))
        counts = {what: each[order] for what, each in counts.items()}
    run.keep("seconds", seconds)
    run.keep("sizes", {name: complexity(spec)._asdict() for name, spec in specs.items()})
    values: dict[str, float] = {}
    for kind, taken in seconds.items():
        logs, pair = np.log(list(taken.values())), [counts["flops"], counts["activations"]]
        values[f"{kind}, both"] = runtime.r_squared(pair, logs)
        values[f"{kind}, both, one left out"] = runtime.r_squared(pair, logs, crossed=True)
        values |= {f"{kind}, r of {what}": runtime.pearson(each, logs) for what, each in counts.items()}
    return run.busy or values


def _passes(spec: Spec, batch: int) -> dict[str, Callable[[], Any]]:
    """A forward pass, and a forward and backward pass, of a batch."""
    model = Network(spec.network(), 0)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((batch, spec.resolution, spec.resolution, 3), np.float32))
    labels = torch.from_numpy(rng.integers(spec.classes, size=batch))

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    def training() -> None:
        model.train()
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    return {"forward": forward, "training": training}


def _logs(specs: list[Spec]) -> dict[str, np.ndarray]:
    counted = [complexity(each) for each in specs]
    return {what: np.array([math.log(getattr(each, what)) for each in counted]) for what in Complexity._fields}
