"""The figures: gains by size, the best GPU by objective, costs by rate, fleets, how far four cells reach, a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from common.figures import COLOURS, style
from papers.melange import published
from papers.melange.fit import Fit, corners
from papers.melange.service import Service


def gains(found: Fit) -> Any:
    """Tokens a dollar of A10G over A100: published beside predicted; the four fitted cells are framed."""
    with style() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        for ax, values, title in zip(axes, (published.PICTURE, found.gains[0]), ("published", "best fit"), strict=True):
            ax.imshow(values.T, cmap="RdBu_r", vmin=-0.8, vmax=0.8, origin="lower")
            for (i, o), value in np.ndenumerate(values):
                ax.text(i, o, f"{100 * value:+.0f}", ha="center", va="center", fontsize=8)
            for i, o in np.argwhere(corners()):
                ax.add_patch(plt.Rectangle((i - 0.5, o - 0.5), 1, 1, fill=False, linewidth=2))
            ticks = range(len(published.SIZES))
            ax.set(xticks=ticks, yticks=ticks, xticklabels=published.SIZES, yticklabels=published.SIZES)
            ax.set(xlabel="tokens in", ylabel="tokens out", title=f"A10G over A100, per cent, {title}")
            ax.grid(False)
        return figure


def best_gpu(service: Service, place: int, title: str) -> Any:
    """The type with the most tokens a dollar in every bucket, at one objective; white: none serves it."""
    from matplotlib.colors import ListedColormap

    rates = service.rates[..., place] / np.array(list(published.PRICES.values()))[:, None, None]
    best = np.where(rates.max(axis=0) > 0, rates.argmax(axis=0), np.nan)
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6.4, 3.4))
        ax.imshow(
            best.T,
            cmap=ListedColormap(COLOURS[: len(service.engines)]),
            vmin=-0.5,
            vmax=len(service.engines) - 0.5,
            origin="lower",
        )
        for colour, name in zip(COLOURS, service.engines, strict=False):
            ax.plot([], [], "s", color=colour, label=name)
        ax.set(xticks=range(len(published.INPUT_EDGES)), yticks=range(len(published.OUTPUT_EDGES)))
        ax.set(xticklabels=published.INPUT_EDGES, yticklabels=published.OUTPUT_EDGES)
        ax.set(xlabel="tokens in", ylabel="tokens out", title=title)
        ax.tick_params(axis="x", rotation=45)
        ax.grid(False)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def savings(table: Mapping[str, Mapping[float, Mapping[str, float]]]) -> Any:
    """Per cent cheaper than each type alone, by rate; a panel for each workload and objective."""
    with style() as plt:
        figure, axes = plt.subplots(2, -(-len(table) // 2), figsize=(11, 5.6), layout="constrained", sharey=True)
        for ax, (title, rates) in zip(axes.T.flat, table.items(), strict=False):
            for i, name in enumerate(published.PRICES):
                place = np.arange(len(rates)) + 0.2 * (i - 1.5)
                heights = [each.get(name, np.nan) for each in rates.values()]
                ax.bar(place, heights, 0.2, color=COLOURS[i], label=name)
            ax.set(xticks=range(len(rates)), xticklabels=[f"{rate:g}" for rate in rates], title=title)
        for ax in axes[-1]:
            ax.set_xlabel("requests/s")
        for ax in axes[:, 0]:
            ax.set_ylabel("cheaper by, %")
        axes[0, 0].legend(title="than this type alone")
        return figure


def fleets(table: Mapping[str, Mapping[float, Mapping[str, int]]]) -> Any:
    """What a fleet spends on each type, by rate."""
    with style() as plt:
        figure, axes = plt.subplots(2, -(-len(table) // 2), figsize=(11, 5.6), layout="constrained")
        for ax, (title, rates) in zip(axes.T.flat, table.items(), strict=False):
            bottom = np.zeros(len(rates))
            for i, (name, price) in enumerate(published.PRICES.items()):
                parts = np.array(
                    [fleet[name] * price / sum(fleet[k] * p for k, p in published.PRICES.items()) for fleet in rates.values()]
                )
                ax.bar([f"{rate:g}" for rate in rates], parts, bottom=bottom, color=COLOURS[i], label=name)
                bottom += parts
            ax.set_title(title)
        for ax in axes[-1]:
            ax.set_xlabel("requests/s")
        for ax in axes[:, 0]:
            ax.set_ylabel("share of the cost")
        axes[0, 0].legend()
        return figure


def spread(found: Fit) -> Any:
    """Error in the four corners against signs right in the other cells, all points of the grid; the best 1 % stand out."""
    with style() as plt:
        figure, ax = plt.subplots()
        ax.plot(found.error, 100 * found.signs, ".", color=COLOURS[7], markersize=3, label="grid")
        ax.plot(found.error[: found.good], 100 * found.signs[: found.good], "o", color=COLOURS[1], label="best 1 %")
        ax.set(xlabel="error in the four fitted cells, log ratio", ylabel="right signs in the other 32, %")
        ax.set_title("Four cells do not pin five constants down")
        ax.set_xlim(right=1)
        ax.legend()
        return figure


def day(costs: Mapping[str, Float[np.ndarray, " hour"]], rates: Sequence[float]) -> Any:
    """Dollars of each hour."""
    with style() as plt:
        figure, ax = plt.subplots()
        for name, each in costs.items():
            ax.step(range(len(rates)), each, where="post", label=f"{name}: {each.sum():.0f} $ a day")
        ax.set(xlabel="hour", ylabel="$/h", title=f"A day of short requests, {min(rates):.1f} to {max(rates):.1f} a second")
        ax.legend()
        return figure
