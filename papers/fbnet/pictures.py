"""Figures of the run and the notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.figures import COLOURS, style
from papers.fbnet.space import CODES


def curves(history: Mapping[str, Sequence[float]], uniform: float) -> Any:
    """Expected latency, cross-entropy and temperature over the epochs of a search."""
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
        left.plot(history["latency"], "o-", label="expected latency")
        left.axhline(uniform, color="#777777", linestyle="--", linewidth=1, label="uniformly random")
        left.set(xlabel="epoch", ylabel="ms", title="Latency of what would be drawn")
        left.legend()
        right.plot(history["cross-entropy"], "o-", label="cross-entropy")
        right.plot(history["tau"], "o-", label="temperature")
        right.set(xlabel="epoch", title="Cross-entropy and temperature")
        right.legend()
        return figure


def logits(thetas: Sequence[Any], epochs: Sequence[int]) -> Any:
    """softmax(theta) at some epochs, layers down, candidates across."""
    with style() as plt:
        figure, axes = plt.subplots(1, len(epochs), figsize=(2.6 * len(epochs), 3.4), squeeze=False)
        for place, (ax, epoch) in enumerate(zip(axes[0], epochs, strict=True)):
            theta = np.asarray(thetas[epoch])
            shares = np.exp(theta - theta.max(-1, keepdims=True))
            image = ax.imshow(shares / shares.sum(-1, keepdims=True), vmin=0, vmax=1, cmap="Blues", aspect="auto")
            ax.set(title=f"epoch {epoch + 1}", xlabel="candidate")
            ax.set_xticks(range(len(CODES)), CODES, rotation=90, fontsize=7)
            ax.grid(False)
            ax.set_yticks(range(len(shares)), range(1, len(shares) + 1) if place == 0 else [""] * len(shares))
            if place == 0:
                ax.set_ylabel("layer")
        figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8)
        return figure


def scatter(predicted: Sequence[float], found: Sequence[float], correlation: float) -> Any:
    """Latency of whole nets by the table, and measured."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(4.2, 3.8))
        ax.plot(predicted, found, "o")
        low, high = min(*predicted, *found), max(*predicted, *found)
        ax.plot([low, high], [low, high], color="#777777", linewidth=1, linestyle="--", label="equal")
        ax.set(xlabel="sum over the table [ms]", ylabel="measured [ms]", title=f"Random nets, r = {correlation:.3f}")
        ax.legend()
        return figure


def trade(random: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> Any:
    """(latency, accuracy) of nets drawn at random and of nets drawn after a search."""
    with style() as plt:
        figure, ax = plt.subplots(figsize=(5.2, 3.6))
        for points, name, colour in ((random, "uniformly random", COLOURS[7]), (found, "drawn after the search", COLOURS[1])):
            ax.plot(*np.transpose(points), "o", color=colour, label=name)
        ax.set(xlabel="latency by the table [ms]", ylabel="accuracy on test images", title="Trained alike")
        ax.legend()
        return figure


def strips(architectures: Mapping[str, Sequence[str]]) -> Any:
    """Architectures side by side, one coloured field for each layer: colour for expansion, text for kernel and groups."""
    shades = {"1": "#d6e4f2", "3": "#7fabd6", "6": "#2f6db3"}
    with style() as plt:
        figure, ax = plt.subplots(figsize=(9.2, 0.5 * len(architectures) + 0.8))
        for row, (name, codes) in enumerate(architectures.items()):
            for column, code in enumerate(codes):
                colour = "#ffffff" if code == "s" else shades[code.removesuffix("g")[-1]]
                ax.add_patch(plt.Rectangle((column, -row), 0.94, 0.8, facecolor=colour, edgecolor="#999999", linewidth=0.5))
                ax.text(column + 0.47, 0.4 - row, code, ha="center", va="center", fontsize=7,
                        color="white" if code.endswith("6") else "black")  # fmt: skip
            ax.text(-0.3, 0.4 - row, name, ha="right", va="center", fontsize=9)
        ax.set(xlim=(-4, max(map(len, architectures.values()))), ylim=(-len(architectures) + 0.9, 1))
        ax.axis("off")
        return figure
