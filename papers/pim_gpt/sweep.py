"""The closed form beside the event simulator: how near, how fast, and the same in both frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.ledger import NotRun, Value
from common.runner import Run
from papers.pim_gpt import cost, published
from papers.pim_gpt.config import Config
from papers.pim_gpt.layout import Layout, Options
from papers.pim_gpt.machine import Machine, Timing
from papers.pim_gpt.program import token
from papers.pim_gpt.simulator import simulate

CHOICES: dict[str, tuple[float, ...]] = {
    "channels": tuple(range(1, 17)), "banks": (4, 8, 16), "lanes": (8, 16, 32), "row": tuple(512 * k for k in (1, 2, 4, 8)),
    "pin_rate": (4.0, 8.0, 12.0, 16.0, 24.0, 32.0),
}  # fmt: skip


def machines(count: int, seed: int) -> list[Machine]:
    """Random designs without refresh, large enough for every model."""
    rng, quiet = np.random.default_rng(seed), Timing(refresh_interval=0)
    drawn = {name: rng.choice(values, count) for name, values in CHOICES.items()}
    rows = zip(*drawn.values(), strict=True)
    return [
        Machine(
            channels=int(channels),
            banks=int(banks),
            lanes=int(lanes),
            row=int(row),
            pin_rate=float(rate),
            rows=1 << 24,
            timing=quiet,
        )
        for channels, banks, lanes, row, rate in rows
    ]


def deviation(config: Config, machine: Machine, name: str, position: int, options: Options) -> float:
    """Closed form over event simulator, less one."""
    from papers.pim_gpt import cost_torch

    architecture = published.MODELS[name]
    form = float(cost_torch.latency(cost.shape(architecture), position, cost.design(machine))["total"])
    return form / simulate(token(Layout(machine, architecture, options), position), machine).finish - 1


def closed_form(config: Config, run: Run) -> dict[str, Value]:
    import jax
    import torch

    from common.meter import median_seconds
    from papers.pim_gpt import cost_jax, cost_torch

    values: dict[str, Value] = {}
    machine, last = config.quiet_machine(), config.tokens - 1
    if run.wants("closed_form"):
        positions = (0, last // 2, last) if config.stride < last else (last // 2,)
        found = {f"{n} {p}": deviation(config, machine, n, p, config.options()) for n in published.MODELS for p in positions}
        few = machines(24 if config.stride < last else 6, config.seed)
        names, rng = list(published.MODELS), np.random.default_rng(config.seed)
        drawn = [
            abs(deviation(config, each, names[int(rng.integers(8))], int(rng.integers(0, config.tokens)), config.options()))
            for each in few
        ]
        run.keep("closed_form", found)
        values["closed_form"] = {"paper's machine": max(abs(each) for each in found.values()), "random machines": max(drawn)}
    designs = machines(config.designs, config.seed)
    table = [cost.design(each) for each in designs]
    name = "GPT2-small"
    shape, position = cost.shape(published.MODELS[name]), float(last // 2)
    by_torch = cost.stacked(table, lambda column: torch.tensor(column, dtype=torch.float64))
    with jax.enable_x64(config.double):
        by_jax = cost.stacked(table, jax.numpy.asarray)
        got = np.asarray(cost_jax.sweep(shape, position, by_jax))
        want = cost_torch.latency(shape, position, by_torch)["total"].numpy()
        values["twins"] = float(np.abs(got / want - 1).max())
        run.figure("designs", lambda: _draw(designs, want))
        if not run.alone:
            return values | dict.fromkeys(("events", "sweep", "torch_over_jax"), run.busy)
        inputs = (
            cost.stacked([shape], lambda column: torch.tensor(column, dtype=torch.float64)[0]),
            torch.tensor(position, dtype=torch.float64),
            by_torch,
        )
        torch_sweep = cost_torch.compiled_sweep() if config.compiled else cost_torch.latency
        with run.timing():
            layout = Layout(config.machine(), published.MODELS[name], config.options())
            seconds = median_seconds(
                {
                    "jax": lambda: cost_jax.sweep(shape, position, by_jax).block_until_ready(),
                    "torch": lambda: torch_sweep(*inputs),
                    "events": lambda: simulate(token(layout, last // 2), config.machine()),
                },
                repeats=config.repeats,
                least=0.02,
            )
            commands = len(simulate(token(layout, last // 2), config.machine()).rows)
    if not run.alone:
        return values | dict.fromkeys(("events", "sweep", "torch_over_jax"), run.busy)
    run.keep("seconds_of_sweep", {**seconds, "designs": config.designs, "commands": commands})
    return values | {
        "events": {"commands a second": commands / seconds["events"], "seconds a token": seconds["events"]},
        "sweep": seconds["events"] / (seconds["jax"] / config.designs),
        "torch_over_jax": seconds["torch"] / seconds["jax"] if config.compiled else NotRun("compiled=false", busy=True),
    }


def _draw(designs: list[Machine], ns: Any) -> Any:
    from common.figures import style

    units = np.array([each.peak for each in designs])
    with style() as plt:
        figure, ax = plt.subplots()
        for row in CHOICES["row"]:
            chosen = [each.row == row for each in designs]
            ax.plot(units[chosen], ns[chosen] / 1e3, ".", markersize=3, label=f"rows of {int(row)}")
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="multiply-accumulates a ns",
            ylabel="µs",
            title="A token of GPT2-small on random machines",
        )
        ax.legend()
        return figure
