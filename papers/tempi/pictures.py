"""The figures: bandwidth of packing by size and block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.figures import style
from papers.tempi.model import Model


def bandwidth(found: Sequence[dict[str, Any]], model: Model) -> Any:
    """GB/s of packed bytes by size and block: the library, the layer, and what the tables say of the layer's own copy."""
    one = [each for each in found if each["objects"] == 1]
    sizes, blocks = (sorted({each[name] for each in one}) for name in ("size", "block"))
    grids = {name: np.full((len(sizes), len(blocks)), np.nan) for name in ("library", "layer", "model")}
    for each in one:
        at = sizes.index(each["size"]), blocks.index(each["block"])
        for name in ("library", "layer"):
            grids[name][at] = each["size"] / each[name] / 1e9
        grids["model"][at] = each["size"] / model.surface("pack", each["size"], each["block"]) / 1e9
    with style() as plt:
        figure, axes = plt.subplots(1, 3, figsize=(11, 2.6), layout="constrained", sharey=True)
        for ax, (name, grid) in zip(axes, grids.items(), strict=True):
            ax.imshow(np.log10(grid), vmin=-2, vmax=1.3, aspect="auto", origin="lower")
            for (i, j), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    ax.text(j, i, f"{value:.2g}", ha="center", va="center", color="white", fontsize=8)
            ax.set(xticks=range(len(blocks)), xticklabels=blocks, yticks=range(len(sizes)), xlabel="block [bytes]", title=name)
            ax.set_yticklabels([f"{size // 1024} KiB" for size in sizes])
            ax.grid(False)
        axes[0].set_ylabel("object")
        return figure
