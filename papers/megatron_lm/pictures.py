"""The figures: schedules as they ran, bubbles, predicted rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.events import Timeline
from common.figures import COLOURS, lines, style


def schedules(found: Mapping[str, Timeline], title: str = "Schedules as real processes ran them") -> Any:
    """One Gantt chart below the other, on one scale of time; a kind of pass has one colour in all."""
    kinds = sorted({span.name for line in found.values() for span in line.spans}, key=lambda name: (name[-1], name[0] == "b"))
    with style() as plt:
        figure, rows = plt.subplots(
            len(found), 1, sharex=True, figsize=(7.5, 1.5 * len(found)), layout="constrained", squeeze=False
        )
        for axes, (name, line) in zip(rows[:, 0], found.items(), strict=True):
            ranks = sorted(line.resources)
            for span in line.spans:
                bar = [(1e3 * span.start, 1e3 * (span.end - span.start))]
                colour = COLOURS[kinds.index(span.name)]
                axes.broken_barh(
                    bar, (ranks.index(span.resource) - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.3
                )
            axes.set_yticks(range(len(ranks)), ranks)
            axes.invert_yaxis()
            axes.grid(False)
            axes.set_title(name)
        rows[-1, 0].set_xlabel("time [ms]")
        for kind in kinds:
            rows[0, 0].plot([], [], "s", color=COLOURS[kinds.index(kind)], label=kind)
        figure.legend(ncols=len(kinds), loc="outside lower left", handlelength=1)
        figure.suptitle(title, x=0.02, ha="left")
        return figure


def bubbles(
    formula: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    measured: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> Any:
    """Closed forms as dashed lines, real runs as points."""
    return lines(
        {**formula, **measured},
        x="microbatches m",
        y="idle time / time of ideal work",
        title="The bubble, p = 4",
        dashed=list(formula),
        log="x",
    )


def combinations(sizes: Sequence[int], rates: Mapping[int, Sequence[float]]) -> Any:
    series = {f"batch {batch}": (list(sizes), list(each)) for batch, each in rates.items()}
    return lines(series, x="t (p = 64 / t)", y="predicted TFLOP/s on each GPU", title="162.2 B parameters on 64 GPUs", log="x")


def losses(one: Sequence[float], grid: Sequence[float], layout: str) -> Any:
    steps = list(range(len(one)))
    return lines(
        {"one process": (steps, one), layout: (steps, grid)}, x="step", y="loss [nats]", title="One training, two layouts"
    )
