"""Run time as a function of multiply-adds, parameters and activations: the published table, correlations, fits, the roofline."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Bool, Float

from common import hardware
from papers.fast_model_scaling.complexity import operators
from papers.fast_model_scaling.specs import Spec

Row = tuple[float, float, float, float]


@functools.cache
def table() -> dict[str, Row]:
    """(10^9 multiply-adds, 10^6 parameters, 10^6 activations, milliseconds of a training step for each image), published."""
    whole = yaml.safe_load((Path(__file__).parent / "timings.yaml").read_text(encoding="utf-8"))
    return {name: tuple(map(float, row)) for name, row in whole.items()}  # type: ignore[misc]


def published_correlations() -> dict[str, float]:
    """Pearson's r of the published times with the published sizes, of logarithms and as they are."""
    flops, parameters, activations, times = np.array(list(table().values())).T
    log = {"activations": activations, "flops": flops, "parameters": parameters}
    found = {f"log, {name}": pearson(np.log(each), np.log(times)) for name, each in log.items()}
    return found | {"linear, activations": pearson(activations, times), "linear, flops": pearson(flops, times)}


def pearson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def predictions(
    x: Sequence[Float[np.ndarray, " n"]], y: Float[np.ndarray, " n"], folds: Sequence[Bool[np.ndarray, " n"]]
) -> Float[np.ndarray, " n"]:
    """Each fold's y from a least-squares plane through all that is not in it; NaN where no fold is."""
    design = np.stack([np.ones(len(y)), *x], axis=1)
    found = np.full(len(y), np.nan)
    for held in folds:
        plane, *_ = np.linalg.lstsq(design[~held], y[~held], rcond=None)
        found[held] = design[held] @ plane
    return found


def one_by_one(count: int) -> list[Bool[np.ndarray, " n"]]:
    """Folds that leave one out each."""
    return list(np.eye(count, dtype=bool))


def r_squared(x: Sequence[Float[np.ndarray, " n"]], y: Float[np.ndarray, " n"], crossed: bool = False) -> float:
    """1 - residual / total sum of squares of the least-squares plane; ``crossed``: of predictions of what was left out."""
    if crossed:
        fitted = predictions(x, y, one_by_one(len(y)))
    else:
        design = np.stack([np.ones(len(y)), *x], axis=1)
        fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def unseen_errors(
    logs: Mapping[str, Float[np.ndarray, " n"]], times: Float[np.ndarray, " n"], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean squared error of log time of networks that the line has not seen, by kind of count."""
    family = np.array([name.startswith("EfficientNet") for name in names])
    folds = {"one left out": one_by_one(len(names)), "EfficientNets from RegNets": [family]}
    return {
        how: {kind: float(np.nanmean((predictions([x], times, held) - times) ** 2)) for kind, x in logs.items()}
        for how, held in folds.items()
    }


def modelled_seconds(spec: Spec, dtype: str = "fp16", batch: int = 64, device: str = "v100_sxm2", memory: bool = True) -> float:
    """A forward pass of a batch on a device: the sum over operators of the longer of arithmetic and memory time.

    Weights are read once for the batch. ``memory=False``: a memory that takes no time. There is no fitted constant; launches,
    caches and matrix units that do not take grouped convolutions are left out, which favours no rule in particular.
    """
    size = {"fp16": 2, "fp32": 4}[dtype]
    chip = hardware.device(device)
    work = operators(spec)
    operations = np.array([2.0 * batch * each.macs for each in work])
    moved = np.array([size * (batch * (each.read + each.written) + each.weights) for each in work], float)
    return float(hardware.roofline(chip, operations, moved * memory, dtype).sum())


def memory_share(spec: Spec, dtype: str = "fp16", batch: int = 64) -> float:
    """The share of that time that operators take which wait for memory."""
    chip, size = hardware.device("v100_sxm2"), {"fp16": 2, "fp32": 4}[dtype]
    waiting = total = 0.0
    for each in operators(spec):
        arithmetic = 2.0 * batch * each.macs / chip.peak(dtype)
        memory = size * (batch * (each.read + each.written) + each.weights) / chip.bandwidth
        total += max(arithmetic, memory)
        waiting += memory if memory >= arithmetic else 0.0
    return waiting / total
