"""The figures: loads and successors, groups before and after, traffic between GPUs, parts of a step, what links and skew change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from common.figures import COLOURS, style
from papers.moetuner.placement import Placement
from papers.moetuner.profile import Profile


def routing(profiled: Profile) -> Any:
    """P of all layers, and R between the first two and the last two."""
    with style() as plt:
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
        shown = [(profiled.load / profiled.load.mean(axis=1, keepdims=True), "load over mean", "expert", "layer")]
        for gap in (0, profiled.layers - 2):
            share = profiled.moved[gap] / profiled.moved[gap].sum(axis=1, keepdims=True)
            shown.append((share, f"layer {gap} to {gap + 1}, share", f"expert of layer {gap + 1}", f"expert of layer {gap}"))
        for ax, (values, title, x, y) in zip(axes, shown, strict=True):
            picture = ax.imshow(values, cmap="viridis", aspect="auto")
            ax.set(title=title, xlabel=x, ylabel=y, xticks=range(values.shape[1]), yticks=range(values.shape[0]))
            ax.grid(False)
            figure.colorbar(picture, ax=ax)
        return figure


def loads(profiled: Profile, places: Mapping[str, Placement], gpus: int) -> Any:
    """The tokens of every GPU over their mean, expert by expert, in every layer."""
    with style() as plt:
        figure, axes = plt.subplots(1, len(places), figsize=(4.6 * len(places), 3.2), layout="constrained", sharey=True)
        for ax, (name, place) in zip(axes, places.items(), strict=True):
            for layer, (load, here) in enumerate(zip(profiled.load, place, strict=True)):
                mean = load.sum() / gpus
                bottom = np.zeros(gpus)
                for expert in np.argsort(-load):
                    at = layer * (gpus + 1) + here[expert]
                    ax.bar(at, load[expert] / mean, bottom=bottom[here[expert]], color=COLOURS[expert % 8], edgecolor="white")
                    bottom[here[expert]] += load[expert] / mean
            ax.axhline(1, color="black", linewidth=1)
            ticks = [layer * (gpus + 1) + (gpus - 1) / 2 for layer in range(profiled.layers)]
            ax.set(title=name, xlabel="layer; a bar for each GPU", xticks=ticks, xticklabels=range(profiled.layers))
        axes[0].set_ylabel("load over mean")
        return figure


def transfers(rows: Mapping[str, Int[np.ndarray, "layer exchange source target"]]) -> Any:
    """Rows from each GPU to each, all layers and both exchanges; what stays on a GPU is left out."""
    with style() as plt:
        figure, axes = plt.subplots(1, len(rows), figsize=(4 * len(rows), 3.2), layout="constrained")
        tables = {name: np.where(np.eye(each.shape[-1], dtype=bool), 0, each.sum(axis=(0, 1))) for name, each in rows.items()}
        most = max(each.max() for each in tables.values())
        for ax, (name, table) in zip(axes, tables.items(), strict=True):
            ax.imshow(table, cmap="viridis", vmin=0, vmax=most)
            for (source, target), value in np.ndenumerate(table):
                ax.text(
                    target, source, f"{value:,}" if source != target else "", ha="center", va="center", color="white", fontsize=8
                )
            gpus = range(len(table))
            ax.set(title=f"{name}: {table.sum():,} rows", xlabel="to GPU", ylabel="from GPU", xticks=gpus, yticks=gpus)
            ax.grid(False)
        return figure


def steps(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """The parts of a modelled step by method, tokens that follow their experts."""
    with style() as plt:
        figure, axes = plt.subplots(1, len(table), figsize=(10, 3.4), layout="constrained", sharey=True)
        for ax, (title, methods) in zip(axes, table.items(), strict=True):
            shown = {name.partition(",")[0]: each for name, each in methods.items() if name.endswith("follow")}
            bottom = np.zeros(len(shown))
            for colour, part in zip(COLOURS, ("attention", "experts", "links"), strict=False):
                values = np.array([1e3 * each[part] for each in shown.values()])
                ax.bar(list(shown), values, bottom=bottom, color=colour, label=part)
                bottom += values
            for place, (total, each) in enumerate(zip(bottom, shown.values(), strict=True)):
                ax.text(place, total, f"{each['speed-up']:+.1f} %", ha="center", va="bottom", fontsize=9)
            ax.set_title({"single": "one node", "multi": "two nodes"}[title])
            ax.tick_params(axis="x", rotation=20)
        axes[0].set_ylabel("ms, all layers")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def sweep(x: Sequence[float], curves: Mapping[str, Sequence[float]], label: str) -> Any:
    """Modelled speed-up over contiguous placement."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6, 3.4))
        for name, values in curves.items():
            ax.plot(x, values, "o-", label=name)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(xlabel=label, ylabel="faster than contiguous, %")
        ax.legend()
        return figure


def progress(marks: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], exact: float) -> Any:
    """Best and bound of solvers against their time, and the exact optimum."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6, 3.4))
        for colour, (name, (seconds, best, bound)) in zip(COLOURS, marks.items(), strict=False):
            ax.plot(seconds, best, "o-", color=colour, label=f"{name}, best")
            ax.plot(seconds, bound, "o--", color=colour, label=f"{name}, bound")
        ax.axhline(exact, color="black", linewidth=1, label="dynamic programming")
        ax.set(xlabel="limit of time, s", ylabel="objective, tokens", xscale="log")
        ax.legend()
        return figure
