"""The figures of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from common import figures
from papers.gpusq_vit import flops
from papers.gpusq_vit.shapes import DEIT, SWIN, shapes


def operations() -> Any:
    """Effective operations in INT4, products with weights and without, as shares of float32's sixty-fourth."""
    with figures.style() as plt:
        figure, axes = plt.subplots()
        names = [*DEIT, *SWIN]
        full = np.array([flops.effective(shapes(name), "float32").total for name in names]) / (2 * flops.CHEAPER["int4"])
        weights, attention = (
            np.array([getattr(flops.effective(shapes(name), "int4"), part) for name in names]) / full
            for part in ("weights", "attention")
        )
        axes.bar(names, weights, label="products with weights, half of them zero")
        axes.bar(names, attention, bottom=weights, label="Q K^T and A V, nothing zero")
        for place, height in enumerate(weights + attention):
            axes.text(place, height, f"{2 * flops.CHEAPER['int4'] / height:.1f}x", ha="center", va="bottom", fontsize=9)
        axes.set(ylabel="INT4 operations, 1: as if all were sparse", ylim=(0, 1.3), title="Why small networks gain less")
        axes.legend(loc="upper right")
        return figure


def losses(logs: dict[str, list[list[float]]]) -> Any:
    """The three terms of the loss over the steps of both stages."""
    with figures.style() as plt:
        shown = [name for name in ("prune int8", "quantize int8", "prune int4", "quantize int4") if logs.get(name)] or list(logs)
        figure, axes = plt.subplots(1, max(1, len(shown)), figsize=(3 * max(1, len(shown)), 3.2), sharey=True, squeeze=False)
        for axis, name in zip(axes[0], shown, strict=False):
            terms = np.array(logs[name])
            for place, label in enumerate(("labels", "logits", "features")):
                if terms.size:
                    axis.plot(np.maximum(terms[:, place], 1e-5), label=label)
            axis.set(yscale="log", xlabel="step", title=name)
        axes[0][0].set_ylabel("loss")
        axes[0][0].legend()
        return figure
