"""Fit the five constants of the profile to the four corners of the authors' picture, and see how far four cells reach.

Every point of a grid of constants is tried, with each of the A10G's two peaks; its error is the root mean square, over the corners,
of the difference of log ratios of tokens a dollar. The other 32 cells are looked at afterwards and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from jaxtyping import Bool, Float

from papers.melange import published
from papers.melange.profile import Constants, Load, blind, chip, gain, side_by_side
from papers.melange.profile_torch import max_rate

GRID = Constants(
    bandwidth=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    compute=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    step=(0.0, 0.005, 0.01, 0.02),
    sequence=(0.0, 5e-5, 1e-4),
    occupancy=(0.5, 0.75, 1.0),
)
NEUTRAL = 0.04
"""A cell whose gain is within this counts as either sign: the picture is rounded, and its measurements repeat no better."""


@dataclass(frozen=True)
class Fit:
    """All points of the grid, best first.

    Attributes:
        peaks: of the A10G at each point; constants: as arrays.
        error: root mean square of the log ratios over the cells of the fit.
        gains: of the A10G over the A100 in all 36 cells, as the profile predicts them.
    """

    peaks: Float[np.ndarray, " point"]
    constants: Constants
    error: Float[np.ndarray, " point"]
    gains: Float[np.ndarray, "point input output"]

    def at(self, point: int) -> tuple[float, Constants]:
        """The A10G's peak and the constants of a point, as numbers."""
        return float(self.peaks[point]), Constants(*(float(each[point]) for each in self.constants))

    @property
    def good(self) -> int:
        """Points in the best 1 %."""
        return max(1, round(len(self.error) / 100))

    @cached_property
    def signs(self) -> Float[np.ndarray, " point"]:
        """Share of the cells outside the corners whose sign is right."""
        return right_signs(self.gains)[:, ~corners()].mean(axis=1)

    @cached_property
    def ranks(self) -> Float[np.ndarray, " point"]:
        """Rank correlation (Spearman) of predicted and published gains over the same cells, of the best points."""
        known = _ranks(published.PICTURE[~corners()])
        return np.array([np.corrcoef(_ranks(each[~corners()]), known)[0, 1] for each in self.gains[: self.good]])


def fit(load: Load, cells: Mapping[tuple[int, int], float] = published.CORNERS, *, sees_sizes: bool = True) -> Fit:
    """Try the grid; only ``cells`` are compared. ``sees_sizes``: False serves every size like the middle one, a control."""
    points = np.array(list(product(published.A10G_PEAKS, *GRID)))[:, :, None, None, None]
    peaks, constants = points[:, 0], Constants(*(points[:, i] for i in range(1, 6)))
    inputs, outputs = np.array(published.SIZES, float)[:, None, None], np.array(published.SIZES, float)[:, None]
    rates = []
    for name in ("A10G", "A100"):
        # No latency objective: the picture is of the highest throughput.
        one = side_by_side([chip(name, load)])._replace(peak=peaks if name == "A10G" else chip(name, load).peak)
        found = max_rate(one, constants, load, inputs, outputs, np.inf, most=published.BATCH).numpy()
        rates.append((found if sees_sizes else blind(found))[..., 0])
    gains = gain(*rates, (published.PRICES["A10G"], published.PRICES["A100"]))
    places = [(published.SIZES.index(i), published.SIZES.index(o)) for i, o in cells]
    wanted = log_ratio(np.array(list(cells.values())))
    error = np.sqrt(np.mean((log_ratio(gains[:, *zip(*places, strict=True)]) - wanted) ** 2, axis=1))
    order = np.argsort(error, kind="stable")
    return Fit(
        peaks.ravel()[order], Constants(*(each.ravel()[order] for each in constants)), error[order], gains[order]
    )  # fmt: skip


def log_ratio(gains: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """The log of the ratio whose gain it is; odd, so that a lead counts alike for both."""
    return np.sign(gains) * np.log1p(np.abs(gains))


def right_signs(gains: Float[np.ndarray, "... input output"]) -> Bool[np.ndarray, "... input output"]:
    """Cells whose predicted leader is the published one, or whose published lead is too small to count."""
    return (np.sign(gains) == np.sign(published.PICTURE)) | (np.abs(published.PICTURE) <= NEUTRAL)


def corners() -> Bool[np.ndarray, "input output"]:
    """The cells that were fitted."""
    found = np.zeros(published.PICTURE.shape, bool)
    found[np.ix_((0, -1), (0, -1))] = True
    return found


def _ranks(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Places in order; equal values share the mean of theirs."""
    pairs = values[:, None], values
    return np.greater(*pairs).sum(axis=1) + (np.equal(*pairs).sum(axis=1) - 1) / 2
