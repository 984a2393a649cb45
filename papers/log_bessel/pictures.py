"""The figures: the branches beside the errors of both ways to compute, times as bars, a likelihood in 32,768 dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.figures import COLOURS, style
from papers.log_bessel import baseline
from papers.log_bessel.fits import Fit
from papers.log_bessel.kernel import BRANCHES
from papers.log_bessel.vmf_torch import vmf_log_normalizer

Panels = Mapping[str, tuple[np.ndarray, np.ndarray]]


def error_maps(grid: str, order: np.ndarray, x: np.ndarray, chosen: np.ndarray, panels: Panels) -> Any:
    """For each function the branches, our error and SciPy's, over a square grid; what is not finite (error 1) stays white."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    side = round(len(x) ** 0.5)
    v, z = order.reshape(side, side), x.reshape(side, side)
    with style() as plt:
        figure, axes = plt.subplots(2, 3, figsize=(11.5, 6.4), sharex=True, sharey=True)
        colours = ListedColormap(COLOURS[: len(BRANCHES)])
        for row, (name, pair) in zip(axes, panels.items(), strict=True):
            steps = BoundaryNorm(np.arange(len(BRANCHES) + 1) - 0.5, len(BRANCHES))
            branches = row[0].pcolormesh(z, v, chosen.reshape(side, side), cmap=colours, norm=steps, rasterized=True)
            row[0].set(title="branch", ylabel="order v")
            label = "log I" if name == "log_i" else "log K"
            for ax, errors, whose in zip(row[1:], pair, ("here", "by SciPy"), strict=True):
                shown = np.ma.masked_where(errors >= 1, np.log10(np.maximum(errors, 1e-17))).reshape(side, side)
                image = ax.pcolormesh(z, v, shown, cmap="viridis", vmin=-17, vmax=-11, rasterized=True)
                ax.set(title=f"{label} {whose}")
            figure.colorbar(branches, ax=row[0], ticks=range(len(BRANCHES))).ax.set_yticklabels(BRANCHES)
            figure.colorbar(image, ax=row[1:], label="log10 of the error; white: not finite", extend="max")
        for ax in axes.flat:
            ax.grid(False)
            if grid == "scales":
                ax.set(xscale="log", yscale="log")
        for ax in axes[1]:
            ax.set_xlabel("x")
        return figure


def bars(table: Mapping[str, Mapping[str, float]]) -> Any:
    """Nanoseconds of a point by set of points and provider."""
    providers = list(next(iter(table.values())))
    with style() as plt:
        figure, ax = plt.subplots(figsize=(8.5, 0.36 * len(table) * len(providers) / 2 + 1.2))
        place, height = np.arange(len(table)), 0.8 / len(providers)
        for i, provider in enumerate(providers):
            ax.barh(place + i * height, [row[provider] for row in table.values()], height, label=provider)
        ax.set(yticks=place + 0.4 - height / 2, yticklabels=list(table), xscale="log", xlabel="ns per point", title="Time here")
        ax.invert_yaxis()
        ax.legend()
        return figure


def likelihood(dim: int, fitted: Fit, truth: float) -> Any:
    """Mean log density of the sample over kappa, by the logarithm of I computed here and by SciPy's scaled function."""
    kappas = np.linspace(0.2, 3, 240) * truth
    ours = vmf_log_normalizer(dim, torch.from_numpy(kappas)).numpy() + kappas * fitted.resultant
    half = dim / 2
    naive = (half - 1) * np.log(kappas) - half * np.log(2 * np.pi) - baseline.log_i(half - 1, kappas) + kappas * fitted.resultant
    with style() as plt:
        figure, ax = plt.subplots()
        ax.plot(kappas, ours, label="here")
        finite = np.isfinite(naive)
        label = "by SciPy's ive" + ("" if finite.all() else ", where it is finite" if finite.any() else ": nowhere finite")
        ax.plot(kappas, np.where(finite, naive, np.nan), "--", label=label)
        ax.axvline(truth, color=COLOURS[7], linewidth=1, label="true kappa")
        ax.plot([fitted.kappa], [np.interp(fitted.kappa, kappas, ours)], "o", color=COLOURS[2], label="fitted kappa")
        ax.set(xlabel="kappa", ylabel="mean log density [nats]", title=f"Von Mises-Fisher likelihood in {dim:,} dimensions")
        ax.legend()
        return figure
