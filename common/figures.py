"""The look of every figure: one set of colours and sizes, and the plots that many papers draw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLOURS = ("#2f6db3", "#d1662c", "#3b8f5a", "#8a5aa8", "#b8922e", "#c0504d", "#5b7f95", "#777777")
"""In the order of use; told apart in grey and by most colour-blind readers together with the line styles."""

_STYLE: dict[Any, Any] = {
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.hashsalt": "reproductions",
}


@contextlib.contextmanager
def style() -> Iterator[Any]:
    """Yields pyplot in the house style."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from cycler import cycler

    with mpl.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}):
        yield plt


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    title: str,
    dashed: Sequence[str] = (),
    log: str = "",
) -> Any:
    """One curve for each name, drawn from (x values, y values); ``log`` names the logarithmic axes ("x", "y", "xy").

    Dashed curves are the paper's own figures, solid ones were found here.
    """
    with style() as plt:
        figure, axes = plt.subplots()
        for name, (xs, ys) in series.items():
            axes.plot(xs, ys, marker="o", label=name, linestyle="--" if name in dashed else "-")
        if "x" in log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(_plain)
        if "y" in log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain)
            low, high = axes.get_ylim()
            # Between powers of ten only where there are few of them.
            axes.yaxis.set_minor_formatter(_plain if high / low < 100 else "")
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.legend()
        return figure


def _plain(value: float, _: int) -> str:
    """A tick as one would write it: 16Ki for lengths that are powers of two, else the number."""
    if value >= 2048 and value == int(value) and int(value) & (int(value) - 1) == 0:
        return f"{int(value) // 1024}Ki"
    return f"{value:g}"
