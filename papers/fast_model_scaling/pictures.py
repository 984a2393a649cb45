"""The figures: growth of activations, which stages grow, run time against counts, accuracy against activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.figures import COLOURS, lines, style
from papers.fast_model_scaling.complexity import breakdown
from papers.fast_model_scaling.specs import Spec


def growth(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Any:
    """Activations against multiply-adds, one line for each rule."""
    return lines(curves, x="multiply-adds [10^9]", y="activations [10^6]", title=title, log="xy")


def stages(specs: Mapping[str, Spec]) -> Any:
    """Activations by the size of the image that a layer works on: which layers grow."""
    with style() as plt:
        figure, axes = plt.subplots()
        sides: dict[str, dict[int, float]] = {}
        for name, spec in specs.items():
            net = spec.network()
            for (_, cost), (_, height, _) in zip(breakdown(spec), net.at(spec.resolution, spec.resolution), strict=False):
                # By the number of halvings before the layer.
                halved = round(np.log2(spec.resolution / height))
                sides.setdefault(name, {})[halved] = sides.get(name, {}).get(halved, 0.0) + cost.activations / 1e6
        for i, (name, each) in enumerate(sides.items()):
            place = np.array(sorted(each)) + 0.8 * (i - (len(sides) - 1) / 2) / len(sides)
            axes.bar(place, [each[k] for k in sorted(each)], 0.8 / len(sides), label=name, color=COLOURS[i])
        axes.set(xlabel="halvings of the image before the layer", ylabel="activations [10^6]", title="Which layers grow")
        axes.legend()
        return figure


def scatter(panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], groups: Sequence[str], y: str, title: str) -> Any:
    """Time against one count in each panel, coloured by group, in log-log."""
    with style() as plt:
        figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 3.6), layout="constrained", sharey=True)
        for ax, (what, (xs, ys)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
            for colour, group in zip(COLOURS, dict.fromkeys(groups), strict=False):
                mine = [i for i, each in enumerate(groups) if each == group]
                ax.plot([xs[i] for i in mine], [ys[i] for i in mine], "o", color=colour, label=group)
            r = np.corrcoef(np.log(xs), np.log(ys))[0, 1]
            ax.set(xscale="log", yscale="log", xlabel=what, title=f"{title}, r = {r:.2f}")
        np.atleast_1d(axes)[0].set_ylabel(y)
        np.atleast_1d(axes)[0].legend()
        return figure


def accuracy(points: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Any:
    """Test accuracy against activations, one line for each rule."""
    return lines(points, x="activations [10^3]", y="test accuracy, %", title=title, log="x")
