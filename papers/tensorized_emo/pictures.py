"""The figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.figures import lines, style


def times(seconds: Mapping[int, Mapping[str, float]]) -> Any:
    """Milliseconds of a generation over the population, a panel for each algorithm."""
    with style() as plt:
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), sharey=True)
        for ax, algorithm in zip(axes, ("NSGA-III", "MOEA/D", "HypE"), strict=True):
            for who in ("loop", "pymoo", "EvoX", "PyTorch", "JAX"):
                found = {n: each[f"{algorithm}, {who}"] for n, each in seconds.items() if f"{algorithm}, {who}" in each}
                if found:
                    ax.plot(list(found), [1e3 * each for each in found.values()], "o-", label=who)
            ax.set(xscale="log", yscale="log", xlabel="individuals", title=algorithm)
            ax.legend()
        axes[0].set_ylabel("ms of a generation")
        return figure


def robot(name: str, runs: Sequence[Mapping[str, Any]]) -> Any:
    """Hypervolume over generations, and the fronts of the first run."""
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
        for label, key, colour in (("NSGA-III", "search", "#2f6db3"), ("random search", "random", "#d1662c")):
            for number, run in enumerate(runs):
                left.plot(run[key], color=colour, label=label if number == 0 else None)
        left.set(xlabel="generation", ylabel="hypervolume", title=f"{name}: by seed")
        left.legend()
        for label, key in (("NSGA-III", "front"), ("random search", "random front")):
            front = np.array(runs[0][key])
            right.plot(front[:, 0], front[:, 1], ".", label=label)
        right.set(xlabel="mean error", ylabel="mean squared force", title="what was found")
        right.legend()
        return figure


def scaling(seconds: Mapping[int, Mapping[str, float]], x: str, title: str) -> Any:
    series = {
        who: ([float(each) for each in seconds], [each[who] * 1e3 for each in seconds.values()])
        for who in next(iter(seconds.values()))
    }
    return lines(series, x=x, y="ms", title=title, log="xy")


def fronts(f: np.ndarray, rank: np.ndarray) -> Any:
    """Two objectives, a colour for each front."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(5.2, 3.8))
        dots = ax.scatter(f[:, 0], f[:, 1], c=rank, cmap="viridis")
        figure.colorbar(dots, label="front")
        ax.set(xlabel="first objective", ylabel="second objective")
        return figure
