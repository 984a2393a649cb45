"""The figures: networks as strips, probabilities over time, predicted against measured latency, memory by candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.figures import COLOURS, lines, style
from papers.proxyless_nas.space import ZERO, Candidate

KERNELS = {3: COLOURS[0], 5: COLOURS[2], 7: COLOURS[1]}


def strips(networks: Mapping[str, Sequence[Candidate]]) -> Any:
    """A bar for each place: colour is the kernel, height the expansion; a dropped place is a dot."""
    with style() as plt:
        figure, axes = plt.subplots(len(networks), 1, figsize=(6.4, 0.9 * len(networks) + 0.6), squeeze=False, sharex=False)
        for axis, (name, choices) in zip(axes[:, 0], networks.items(), strict=True):
            for place, candidate in enumerate(choices):
                if candidate == ZERO:
                    axis.plot(place, 0.3, ".", color="#777777")
                else:
                    axis.bar(place, candidate.expand, 0.85, color=KERNELS.get(candidate.kernel, "#777777"))
            axis.set(ylim=(0, 6.5), yticks=(3, 6), xticks=[], xlim=(-0.6, len(choices) - 0.4))
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            axis.grid(visible=False)
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in KERNELS.values()]
        figure.legend(handles, [f"{kernel} x {kernel}" for kernel in KERNELS], ncol=3, loc="upper right")
        figure.suptitle("Kernel (colour) and expansion (height) by place", x=0.02, ha="left", fontsize=11)
        figure.tight_layout()
        return figure


def probabilities(history: Sequence[np.ndarray], names: Sequence[Sequence[Candidate]]) -> Any:
    """Stacked probabilities of every place over architecture steps, from the shortest kernel up; grey is Zero."""
    with style() as plt:
        columns = min(len(history), 5)
        rows = -(-len(history) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(1.7 * columns, 1.5 * rows + 0.4), squeeze=False, sharex=True, sharey=True
        )
        for place, (own, candidates) in enumerate(zip(history, names, strict=True)):
            axis = axes.flat[place]
            colours = ["#cccccc" if c == ZERO else KERNELS.get(c.kernel, "#777777") for c in candidates]
            layers = axis.stackplot(np.arange(1, len(own) + 1), own.T, colors=colours, edgecolor="white", linewidth=0.4)
            for layer, candidate in zip(layers, candidates, strict=True):
                layer.set_alpha(1.0 if candidate.expand == 6 or candidate == ZERO else 0.6)
            axis.set_title(f"place {place + 1}", fontsize=8)
            axis.set(ylim=(0, 1), yticks=(0, 1))
        for axis in axes.flat[len(history) :]:
            axis.axis("off")
        figure.suptitle("Probabilities by architecture step (strong colours: expansion 6)", x=0.02, ha="left", fontsize=11)
        figure.tight_layout()
        return figure


def scatter(found: Mapping[str, np.ndarray]) -> Any:
    """Predicted against measured latency."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(4.6, 4.0))
        predicted, real = np.asarray(found["predicted"]), np.asarray(found["measured"])
        axes.plot(predicted, real, "o")
        ends = [min(predicted.min(), real.min()), max(predicted.max(), real.max())]
        axes.plot(ends, ends, "--", color="#777777", linewidth=1)
        axes.set(xlabel="sum over the table [ms]", ylabel="measured whole [ms]", title="Random networks on this machine")
        return figure


def memory(by_mode: Mapping[str, Sequence[int]]) -> Any:
    """Bytes of an architecture step by number of candidates."""
    series = {mode: (list(range(1, len(values) + 1)), [value / 2**20 for value in values]) for mode, values in by_mode.items()}
    return lines(
        series, x="candidates in every place", y="kept for the backward pass [MiB]", title="Memory of an architecture step"
    )
