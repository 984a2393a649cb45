"""Figures of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.figures import COLOURS, lines, style


def gelu(whole: Mapping[int, Mapping[str, float]]) -> Any:
    """Largest error against N, one curve for each range of the input."""
    series = {}
    for most, row in whole.items():
        pairs = [(int(n), error) for n, error in row.items() if n != "wide" and np.isfinite(error)]
        series[f"inputs up to {most}"] = tuple(zip(*pairs, strict=True))
    figure = lines(
        series, x="N", y="largest error of ShiftGELU", title="Too few bits on the left, too many on the right", log="y"
    )
    figure.axes[0].axhline(0.12, color="#777777", linewidth=1, linestyle=":")
    return figure


def row_sums(table: Mapping[str, Mapping[str, float]]) -> Any:
    """Mean row sums of Shiftmax at 8 and 16 bits."""
    with style() as plt:
        figure, axes = plt.subplots()
        for place, bits in enumerate((8, 16)):
            rows = {
                re.sub(r", \d+ bits", "", name): row["row sum"] for name, row in table.items() if name.endswith(f" {bits} bits")
            }
            axes.barh(np.arange(len(rows)) + 0.4 * place, rows.values(), 0.38, color=COLOURS[place], label=f"{bits} bits")
            axes.set_yticks(np.arange(len(rows)) + 0.2, rows)
        axes.set(xlabel="mean sum of a row", title="8-bit attention weights vanish in long rows")
        axes.legend()
        return figure
