"""Measure the claims of GaLore: ``python -m papers.galore.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.galore import published
from papers.galore.config import NEVER, Config

LAPTOP_TOKENS = 10**9
"""More than this is no work for a CPU."""
TABLE = ("60M", "130M", "350M", "1B")


def measure(config: Config, run: Run) -> dict[str, Value]:
    tokens = config.steps * config.batch * config.seq_len
    trains = run.wants("loss", "order", "subspaces", "gap", "overhead")
    if trains and tokens > LAPTOP_TOKENS:
        run.require_gpu(f"training on {tokens:,} tokens")
    values: dict[str, Value] = {}
    if run.wants("published_package", "frameworks"):
        values |= trajectories(config, run)
    if run.wants("states", "states_8bit", "total_memory", "card", "table_full", "table_ratio", "state_share"):
        values |= memory_bytes(config, run)
    if run.wants("peak_gradient"):
        values["peak_gradient"] = peak_gradient(config, run)
    if trains:
        values |= language_model(config, run)
    if run.wants("fine_tuning"):
        values["fine_tuning"] = fine_tuning(config, run)
    if run.wants("layer_step"):
        values["layer_step"] = layer_step(config, run)
    return values | {
        "perplexity": NotRun("needs GPUs and the C4 corpus; the sizes are in published.py and preset=paper trains the smallest"),
        "seven_billion": NotRun("needs a GPU for 150,000 steps of a 7B model"),
    }


def trajectories(config: Config, run: Run) -> dict[str, Value]:
    from papers.galore import agreement

    forget = not config.mechanism
    return {
        "published_package": agreement.published(config.seed, forget),
        "frameworks": agreement.frameworks(config.seed, forget=forget),
    }


def memory_bytes(config: Config, run: Run) -> dict[str, Value]:
    """What optimizers keep and a step holds for the paper's models, counted on the meta device."""
    from papers.galore import memory

    values: dict[str, Value] = {}
    block: dict[str, Any] = {"block": published.STATE_BLOCK}
    states = {method: memory.counted_state("7B", method) for method in ("full", "galore")}
    states["galore 8-bit all"] = memory.counted_state("7B", "galore 8-bit all", **block)
    # The share that a state has of full-rank Adam's in bfloat16.
    share = {method: size / states["full"] for method, size in states.items()}
    values |= {"states": 100 * (1 - share["galore"]), "states_8bit": 100 * (1 - share["galore 8-bit all"])}
    budgets = {
        "BF16 Adam": memory.budget("7B", states["full"], per_layer=False),
        "8-bit GaLore, layer by layer": memory.budget("7B", states["galore 8-bit all"], per_layer=config.mechanism),
    }
    run.keep("budget_gb", budgets)
    totals = [sum(parts.values()) for parts in budgets.values()]
    values["total_memory"] = 100 * (1 - totals[1] / totals[0])
    if run.wants("card"):
        peaks = {"256 tokens": memory.counted_step("7B", "galore 8-bit all", 256, **block)}
        if len(config.gaps) > 1:
            name = "2048 tokens, checkpointing"
            peaks[name] = memory.counted_step("7B", "galore 8-bit all", 2048, checkpointing=True, **block)
        values["card"] = peaks
    if run.wants("table_full", "table_ratio"):
        full = {size: memory.weight_bytes(size) + memory.counted_state(size, "full") for size in TABLE}
        words = {"attention and MLP": memory.WORDS, "and the head": (*memory.WORDS, "head")}
        ratios = {
            name: {s: (memory.weight_bytes(s) + memory.counted_state(s, "galore", chosen)) / full[s] for s in TABLE}
            for name, chosen in words.items()
        }
        run.keep("table_gb", {size: each / 1e9 for size, each in full.items()})
        run.keep("table_ratios", ratios)
        values["table_full"] = {size: each / 1e9 for size, each in full.items()}
        values["table_ratio"] = ratios["and the head"]
    values["state_share"] = memory.layer_share(*config.layer)
    _draw_budget(run, budgets)
    return values


def peak_gradient(config: Config, run: Run) -> Value:
    from papers.galore import gradients

    torch = {name: gradients.peaks_torch(way) for name, way in (("layer by layer", True), ("all at once", False))}
    jax = gradients.peaks_jax(update=len(config.gaps) > 1)
    run.keep("peak_gradient", {"torch": torch, "jax": jax})
    return {"torch": torch["layer by layer"]["gradients"], "jax": jax["gradients"]}


def language_model(config: Config, run: Run) -> dict[str, Value]:
    """One model by all methods, and GaLore at other gaps; from the same weights on the same batches."""
    from papers.galore import memory, speed, training

    methods = [m for m in training.METHODS if len(config.gaps) > 1 or m in ("full", "galore", "lora", "low-rank")]
    if run.only is not None:
        methods = [
            m
            for m in methods
            if m == "galore" or (m == "full" and run.wants("loss")) or (run.wants("order") and m in ("lora", "low-rank"))
        ]
    outcomes = {method: training.train(method, config, run) for method in methods}
    galore = outcomes["galore"]
    held = {method: each.held_out for method, each in outcomes.items()}
    values: dict[str, Value] = {}
    if run.wants("loss"):
        values["loss"] = held["galore"] / held["full"]
    if run.wants("order"):
        pairs = {"GaLore below LoRA": ("galore", "lora"), "LoRA below low-rank": ("lora", "low-rank")}
        values["order"] = {name: held[better] < held[worse] for name, (better, worse) in pairs.items()}
    if run.wants("subspaces"):
        values["subspaces"] = training.walked_rank(galore.model, config) / config.rank
    if run.wants("gap"):
        sweep = {config.gap: held["galore"]} | {gap: training.train("galore", config, run, gap).held_out for gap in config.gaps}
        run.keep("gap_sweep", {"never" if gap == NEVER else gap: loss for gap, loss in sorted(sweep.items())})
        values["gap"] = _interior(sweep)
        _draw_gaps(run, sweep)
    if run.wants("overhead"):
        # The steps' time has the decompositions of this run in it, which makes the share too small by less than itself.
        step = galore.seconds / config.steps
        values["overhead"] = run.busy or speed.decomposition_share(
            galore.optimizer, step, config.overhead_gap, config.decomposition.value
        )
    run.keep("held_out_loss", held)
    run.keep("state_bytes", {method: memory.state_bytes(each.optimizer) for method, each in outcomes.items()})
    run.keep("loss_curves", {method: each.losses.tolist() for method, each in outcomes.items()})
    _draw_losses(run, {method: each.losses for method, each in outcomes.items()})
    return values


def fine_tuning(config: Config, run: Run) -> Value:
    from papers.galore import finetune

    found = finetune.accuracies(config, run)
    run.keep("fine_tuning_mean", found)
    return found["galore"] - found["lora"]


def layer_step(config: Config, run: Run) -> Value:
    from papers.galore import speed

    rows, columns = config.layer
    rank = min(rows, columns) // 4
    if run.alone:
        run.keep("decompositions", speed.decompositions(rows, columns, rank, 1))
    return speed.layer_steps(rows, columns, rank, config.repeats, run)


def _interior(sweep: dict[int, float]) -> float:
    """The best loss at a gap inside the sweep over the best at its ends."""
    gaps = sorted(sweep)
    inside = gaps[1:-1] or gaps[:1]
    ends = [gaps[0], gaps[-1]] if len(gaps) > 2 else gaps[-1:]
    return min(sweep[gap] for gap in inside) / min(sweep[gap] for gap in ends)


def _draw_losses(run: Run, curves: dict[str, np.ndarray]) -> None:
    from common.figures import lines

    def smooth(losses: np.ndarray) -> Any:
        width = max(len(losses) // 20, 1)
        return np.arange(1, len(losses) // width + 1) * width, losses[: len(losses) // width * width].reshape(-1, width).mean(1)

    series = {method: smooth(losses) for method, losses in curves.items()}
    run.figure("loss", lambda: lines(series, x="step", y="loss [nats per byte]", title="One model, by all methods"))


def _draw_gaps(run: Run, sweep: dict[int, float]) -> None:
    from common.figures import lines

    shown = sorted(gap for gap in sweep if gap != NEVER)
    series: dict[str, Any] = {"refreshed every T steps": (shown, [sweep[gap] for gap in shown])}
    if NEVER in sweep:
        series["never refreshed"] = ([shown[0], shown[-1]], [sweep[NEVER]] * 2)
    run.figure("gap", lambda: lines(series, x="T", y="held-out loss [nats per byte]", title="How often to look anew", log="x"))


def _draw_budget(run: Run, budgets: dict[str, dict[str, float]]) -> None:
    from common.figures import style

    def draw() -> Any:
        with style() as plt:
            figure, axes = plt.subplots()
            for name in next(iter(budgets.values())):
                below = [sum(list(b.values())[: list(b).index(name)]) for b in budgets.values()]
                axes.barh(list(budgets), [b[name] for b in budgets.values()], left=below, label=name, height=0.5)
            axes.axvline(published.CARD, color="#555555", linewidth=1, linestyle="--")
            axes.set(xlabel="GB", title="7 billion parameters in bfloat16")
            axes.legend(ncol=2)
            return figure

    run.figure("budget", draw)


if __name__ == "__main__":
    raise SystemExit(main("galore"))
