"""The figures of the run and of the notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.figures import COLOURS, lines, style
from kernels.gemm_w4a16 import reference
from papers.marlin.partition import Schedule


def speedup(batches: Any, curves: Mapping[str, Any], title: str = "Speed-up over float16, ideal matrix, A10") -> Any:
    return lines({name: (batches, each) for name, each in curves.items()}, x="batch", y="times", title=title, log="x")


def latency(loads: Sequence[float], curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    names = {"fp16": "float16", "int4": "4 bits", "sparse": "4 bits, 2:4"}
    series = {names[kind]: (loads, [1e3 * each for each in found["between tokens"]]) for kind, found in curves.items()}
    return lines(series, x="requests a second", y="ms between tokens", title="Llama 2 7B on an A10, 64 in, 64 out", log="y")


def served(gains: Mapping[str, Mapping[int, float]], by_overhead: Mapping[str, Mapping[int, float]]) -> Any:
    curves = {f"4 bits, {name} between steps": each for name, each in by_overhead.items()} | {"4 bits, 2:4": gains["sparse"]}
    # Batches come back from a kept run as text.
    series = {name: ([int(batch) for batch in each], list(each.values())) for name, each in curves.items()}
    return lines(series, x="batch", y="times float16", title="Tokens a second, Llama 2 7B on an A10", log="x")


def stripes(schedule: Schedule, title: str) -> Any:
    """Tiles coloured by block; numbers where they fit."""
    k_tiles, n_tiles = schedule.owner.shape
    with style() as plt:
        figure, axes = plt.subplots(figsize=(min(9, 1.5 + 0.22 * n_tiles + 1), min(5, 1 + 0.22 * k_tiles + 1)))
        axes.imshow(schedule.owner % len(COLOURS), cmap=_colours(), vmin=-0.5, vmax=len(COLOURS) - 0.5)
        if schedule.owner.size <= 200:
            for (row, column), block in np.ndenumerate(schedule.owner):
                axes.text(column, row, str(block), ha="center", va="center", color="white", fontsize=9)
        axes.grid(False)
        axes.set(xlabel="tile along n", ylabel="tile along k", title=title)
        return figure


def threads() -> Any:
    """Which thread of a warp holds each weight of four neighbouring tiles, and the order of its eight in the first tile."""
    place = np.argsort(reference.places())
    grid = place.reshape(4, 16, 16).transpose(1, 0, 2).reshape(16, 64)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(10, 3.2))
        axes.imshow(grid // 32 % len(COLOURS), cmap=_colours(), vmin=-0.5, vmax=len(COLOURS) - 0.5, aspect="auto")
        for row in range(16):
            for column in range(64):
                thread = grid[row, column] // 32
                axes.text(column, row, str(thread), ha="center", va="center", color="white", fontsize=5)
        for edge in (15.5, 31.5, 47.5):
            axes.axvline(edge, color="white", linewidth=2)
        axes.grid(False)
        axes.set(xlabel="column: four tiles of 16", ylabel="row", title="The thread whose 16 bytes hold each weight")
        return figure


def _colours() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(COLOURS)
