"""Claims from models of time: the bubble of simulated schedules, the best tensor parallelism, ZeRO-3, and the speed of a sweep."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.ledger import Value
from common.meter import median_seconds
from common.runner import Run
from papers.megatron_lm import cost, pictures, published
from papers.megatron_lm.config import Config
from papers.megatron_lm.schedule import Kind, generate
from papers.megatron_lm.shape import Shape
from papers.megatron_lm.simulator import bubble, simulate


def claims(config: Config, run: Run) -> dict[str, Value]:
    values: dict[str, Value] = {}
    if run.wants("bubble"):
        values["bubble"] = bubbles(config)
    values["best_tp"] = {**best_tensor(config, run)}
    values["zero_cmp"] = against_zero(config)
    values["rate_small"] = table_rate("1.7B")
    if run.wants("sweep"):
        values["sweep"] = run.busy or sweep(config, run)
    return values


def bubbles(config: Config) -> dict[str, float]:
    """Largest relative error of the simulated bubble against (p - 1) / (v m)."""

    def error(kind: Kind, p: int, m: int, v: int) -> float:
        schedule = generate(kind, p, m, v) if config.interleave else generate(Kind.one_f_one_b, p, m)
        found = bubble(simulate(schedule, v if config.interleave else 1, 1.0, 2.0))
        wanted = (p - 1) / (v * m)
        return abs(found - wanted) / wanted

    sizes = [(2, (2, 8, 64)), (4, (4, 8, 64)), (8, (8, 16, 64)), (64, (64,))]
    pairs = [(p, m) for p, counts in sizes for m in counts]
    kinds = {
        "GPipe": (Kind.gpipe, 1),
        "1F1B": (Kind.one_f_one_b, 1),
        "interleaved, v=2": (Kind.interleaved, 2),
        "interleaved, v=4": (Kind.interleaved, 4),
    }
    return {name: max(error(kind, p, m, v) for p, m in pairs) for name, (kind, v) in kinds.items()}


def best_tensor(config: Config, run: Run) -> dict[str, int]:
    """t of the fastest of all t p = 64 on 64 GPUs, one microbatch a sequence, by batch."""
    shape, sizes = published.SEARCHED, np.array([2, 4, 8, 16, 32])
    plan = cost.Plan(sizes, 64 // sizes, np.ones(5, int), np.ones(5, int), np.ones(5, int))
    found = {}
    for batch in (32, 128):
        times = cost.predict(np, shape, batch, plan, cost.a100(free=config.free_link))
        found[batch] = cost.rate(shape, batch, plan, times) / 1e12
    run.keep("combinations", {"t": sizes, **{f"batch {batch}": rates for batch, rates in found.items()}})
    run.figure("combinations", lambda: pictures.combinations(sizes.tolist(), found))
    return {f"batch {batch}": int(sizes[rates.argmax()]) for batch, rates in found.items()}


def against_zero(config: Config) -> dict[str, float]:
    """Per cent by which the composition is faster than ZeRO-3, both on the same doubled number of GPUs."""
    machine, found = cost.a100(free=config.free_link), {}
    for name, (shape, batch, zero_gpus, zero_microbatch, gpus, layout) in published.DOUBLED.items():
        plan = cost.Plan(layout.tensor, layout.pipeline, layout.data, layout.chunks, layout.microbatch)
        ours = cost.predict(cost.Plain, shape, batch, plan, machine).seconds * gpus
        theirs = cost.zero3_seconds(shape, batch, zero_gpus, zero_microbatch, machine) * zero_gpus
        found[name] = 100 * (theirs / ours - 1)
    return found


def table_rate(name: str) -> float:
    """TFLOP/s on each GPU that the model of time gives a row of table 1."""
    row = published.TABLE[name]
    layout = row.layout
    plan = cost.Plan(layout.tensor, layout.pipeline, layout.data, layout.chunks, layout.microbatch)
    return cost.rate(row.shape, row.batch, plan, cost.predict(cost.Plain, row.shape, row.batch, plan, cost.a100())) / 1e12


def draw(count: int, seed: int) -> cost.Plan:
    """Random combinations; the closed form does not care whether they divide a model."""
    rng = np.random.default_rng(seed)
    return cost.Plan(*(2.0 ** rng.integers(0, most, count) for most in (4, 7, 8, 3, 4)))


def loop(shape: Shape, batch: int, plan: cost.Plan, machine: cost.Machine) -> list[Any]:
    """The closed form for each configuration by itself, on plain numbers."""
    rows = zip(*(each.tolist() for each in plan), strict=True)
    return [cost.predict(cost.Plain, shape, batch, cost.Plan(*row), machine) for row in rows]


def sweep(config: Config, run: Run) -> dict[str, float]:
    """Seconds of 100,000 configurations in both frameworks, and their speed over a Python loop's."""
    import jax
    import torch

    from papers.megatron_lm import cost_jax, cost_torch

    row, machine, count = published.TABLE["145.6B"], cost.a100(), config.sweep
    plan = draw(count, config.seed)
    few = cost.Plan(*(each[: count // 50] for each in plan))
    tensors = cost.Plan(*(torch.from_numpy(each) for each in plan))
    with jax.enable_x64(True):
        functions: dict[str, Any] = {
            "torch": lambda: cost_torch.predict(row.shape, row.batch, tensors, machine).seconds.sum().item(),
            "jax": lambda: cost_jax.predict(row.shape, row.batch, plan, machine).seconds.block_until_ready(),
            "loop": lambda: loop(row.shape, row.batch, few, machine),
        }
        with run.timing():
            taken = median_seconds(functions, repeats=5)
    taken["loop"] *= 50
    if not config.vectorised:
        taken["torch"] = taken["jax"] = taken["loop"]
    scale = 100_000 / count
    return {
        "seconds, torch": taken["torch"] * scale,
        "seconds, jax": taken["jax"] * scale,
        "times the loop, torch": taken["loop"] / taken["torch"],
        "times the loop, jax": taken["loop"] / taken["jax"],
    }
