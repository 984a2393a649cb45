"""Measure the claims of PIM-GPT: ``python -m papers.pim_gpt.reproduce preset=smoke``."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from common.command_line import main
from common.ledger import Value
from common.runner import Run
from papers.pim_gpt import baseline, cost, counting, published
from papers.pim_gpt.config import Config
from papers.pim_gpt.energy import energy
from papers.pim_gpt.layout import Layout
from papers.pim_gpt.program import token
from papers.pim_gpt.simulator import simulate

SPEED = (
    "speed_gpu",
    "speed_gpu_fit",
    "speed_cpu",
    "speed_cpu_fit",
    "energy_gpu",
    "energy_gpu_later",
    "energy_cpu",
    "energy_cpu_later",
)
SHARES = ("rowhit", "vmm_share")
LARGEST = "GPT3-XL"


def measure(config: Config, run: Run) -> dict[str, Value]:
    values: dict[str, Value] = {}
    values |= counted(config)
    if run.wants(*SPEED, *SHARES):
        values |= speed_ups(config, run)
    if run.wants("linear", "growth", "floor_ratio", "sens_bw"):
        values |= largest(config, run)
    if run.wants("functional", "functional_logits", "functional_exact"):
        from papers.pim_gpt import computing

        values |= computing.functional(config, run)
    if run.wants("legal", "interpreter", "series"):
        from papers.pim_gpt import computing

        values |= computing.oracles(config)
    if run.wants("closed_form", "twins", "events", "sweep", "torch_over_jax"):
        from papers.pim_gpt import sweep

        values |= sweep.closed_form(config, run)
    return values


def counted(config: Config) -> dict[str, Value]:
    machine = config.quiet_machine()
    layouts = {name: Layout(machine, a, config.options()) for name, a in published.MODELS.items()}
    images, held = counting.resnet18()
    ns, share = counting.row_visit(machine)
    return {
        "models": {name: counting.block_parameters(layout) / 1e9 for name, layout in layouts.items()},
        "peak": {"MAC a ns": machine.peak, "TB/s": machine.internal_bandwidth / 1e12},
        "floor": counting.floor_seconds(layouts[LARGEST]) * 1e3,
        "rowcost": {"ns": ns, "share of MAC": share},
        "ops_gpt": counting.operations_per_parameter(published.MODELS[LARGEST], config.tokens),
        "ops_resnet": images / held,
        "implied_power": implied_power(),
    }


def implied_power() -> dict[str, float]:
    """Power of the T4 over that of the Xeon that the paper's own ratios imply: (energy / speed-up) of one over the other."""
    found = {}
    for version, (gpu, cpu) in published.ENERGY.items():
        for end, name in enumerate(("lower ends", "upper ends")):
            of = [energies[end] / speeds[end] for energies, speeds in zip((gpu, cpu), published.SPEED, strict=True)]
            found[f"{version}, {name}"] = of[0] / of[1]
    return found


def speed_ups(config: Config, run: Run) -> dict[str, Value]:
    """Mean time and energy of a token of every model, beside GPU and CPU."""
    machine = config.machine()
    positions = sorted({*range(0, config.tokens, config.stride), config.tokens - 1})
    seconds, joules, hits, alone, busy = {}, {}, {}, {}, {}
    for name, architecture in run.track(published.MODELS.items(), "simulating eight models"):
        layout = Layout(machine, architecture, config.options())
        traces = [simulate(token(layout, position), machine) for position in positions]
        seconds[name] = 1e-9 * _mean(config, architecture, positions, [trace.finish for trace in traces])
        joules[name] = _over(config, positions, [sum(energy(trace).values()) for trace in traces]).mean()
        shares = [trace.shares() for trace in traces]
        hits[name] = min(trace.hit_rate for trace in traces)
        alone[name] = float(_over(config, positions, [each["companion alone"] for each in shares]).mean())
        busy[name] = float(_over(config, positions, [each["companion"] for each in shares]).mean())
    fitted = {}
    for platform, (name, factor) in published.CALIBRATION.items():
        make = {"GPU": baseline.gpu, "CPU": baseline.cpu}[platform]
        fitted[platform] = make(published.MODELS[name], factor * seconds[name], config.tokens)
    if not config.gpu_launch:
        fitted["GPU"] = baseline.without_launch(fitted["GPU"])
    speed = {p: {n: fitted[p].seconds(a, config.tokens) / seconds[n] for n, a in published.MODELS.items()} for p in fitted}
    saved = {
        p: {n: fitted[p].watts * fitted[p].seconds(a, config.tokens) / joules[n] for n, a in published.MODELS.items()}
        for p in fitted
    }
    run.keep("seconds", seconds)
    run.keep("watts", {name: joules[name] / seconds[name] for name in seconds})
    run.keep("speed_up", speed)
    run.keep("energy_ratio", saved)
    run.keep("companion_busy", busy)
    run.keep("baselines", {p: vars(each) for p, each in fitted.items()})
    run.figure("speed_up", lambda: _draw_speed(speed, saved))

    def ends(of: dict[str, float]) -> dict[str, float]:
        return {"min": float(min(of.values())), "max": float(max(of.values()))}

    return {
        "speed_gpu": ends(speed["GPU"])["min"],
        "speed_gpu_fit": float(speed["GPU"][published.CALIBRATION["GPU"][0]]),
        "speed_cpu": ends(speed["CPU"])["min"],
        "speed_cpu_fit": float(speed["CPU"][published.CALIBRATION["CPU"][0]]),
        "energy_gpu": ends(saved["GPU"]),
        "energy_gpu_later": ends(saved["GPU"]),
        "energy_cpu": ends(saved["CPU"]),
        "energy_cpu_later": ends(saved["CPU"]),
        "rowhit": float(min(hits.values())),
        "vmm_share": max(alone.values()),
    }


def largest(config: Config, run: Run) -> dict[str, Value]:
    """GPT3-XL over positions and pin rates."""
    machine, architecture = config.machine(), published.MODELS[LARGEST]
    values: dict[str, Value] = {}
    layout = Layout(machine, architecture, config.options())
    if run.wants("linear", "growth", "floor_ratio"):
        x = np.array(sorted({*range(0, config.tokens, config.fit_stride), config.tokens - 1}))
        y = np.array([simulate(token(layout, int(p)), machine).finish for p in run.track(x.tolist(), "positions of GPT3-XL")])
        slope, start = np.polyfit(x, y, 1)
        left = ((y - start - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        run.keep("positions", {"position": x, "ns": y})
        run.figure("positions", lambda: _draw_positions(x, y, start + slope * x))
        values |= {
            "linear": float(1 - left),
            "growth": float(y[-1] / y[0] - 1),
            "floor_ratio": float(y[0] * 1e-9 / counting.floor_seconds(layout)),
        }
    if run.wants("sens_bw"):
        middle, rates = config.tokens // 2, (2.0, 4.0, 8.0, 16.0)
        taken = {
            (name, rate): simulate(
                token(Layout(config.machine(pin_rate=rate), published.MODELS[name], config.options()), middle),
                config.machine(pin_rate=rate),
            ).finish
            for name in (next(iter(published.MODELS)), LARGEST)
            for rate in rates
        }
        run.keep("pin_rates", {name: {rate: ns for (n, rate), ns in taken.items() if n == name} for name, _ in taken})
        slower = {name: taken[name, 4.0] / taken[name, 16.0] - 1 for name, _ in taken}
        rising = all(taken[n, a] >= taken[n, b] for n in slower for a, b in itertools.pairwise(rates))
        values["sens_bw"] = {"monotone": bool(rising), **{f"{name} at 4 Gb/s": each for name, each in slower.items()}}
    run.figure("token", lambda: _draw_token(config))
    return values


def _over(config: Config, positions: list[int], found: Any) -> Any:
    """Values at all positions from those at some."""
    return np.interp(np.arange(config.tokens), positions, found)


def _mean(config: Config, architecture: Any, positions: list[int], ns: list[int]) -> float:
    """Mean over all positions: between the simulated ones the closed form, times their ratio to it."""
    shape, design = cost.shape(architecture), cost.design(config.machine())
    form = cost.latency(np, shape, np.arange(config.tokens, dtype=np.float64), design)["total"]
    return float((form * _over(config, positions, np.array(ns) / form[positions])).mean())


def _draw_speed(speed: Any, saved: Any) -> Any:
    from common.figures import style

    with style() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for ax, table, title in zip(axes, (speed, saved), ("Faster than", "Less energy than"), strict=True):
            for i, (platform, each) in enumerate(table.items()):
                ax.bar(np.arange(len(each)) + 0.4 * i, each.values(), 0.38, label=platform)
            ax.set_xticks(np.arange(len(each)) + 0.2, list(each), rotation=40, ha="right")
            ax.set(yscale="log", title=title, ylabel="times")
            ax.legend()
        return figure


def _draw_positions(x: Any, y: Any, fit: Any) -> Any:
    from common.figures import lines

    return lines(
        {"simulated": (x, y / 1e3), "straight line": (x, fit / 1e3)},
        x="position",
        y="µs",
        title="A token of GPT3-XL",
        dashed=["straight line"],
    )


def _draw_token(config: Config) -> Any:
    from common.figures import style

    machine = config.machine()
    trace = simulate(token(Layout(machine, published.MODELS["GPT2-small"], config.options()), 100), machine)
    with style() as plt:
        figure, ax = plt.subplots(figsize=(9, 2.2))
        trace.timeline(until=9_000).gantt(ax)
        ax.set(xlim=(0, 9), title="The first layer of GPT2-small at position 100: channel 0 of 8 and the companion chip")
        return figure


if __name__ == "__main__":
    raise SystemExit(main("pim_gpt"))
