"""Where the tokens of a Swin block stand to each other: numbers for both frameworks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

FAR = -100.0
"""Added to the scores of tokens that the shift has made neighbours (the authors' code)."""


def relative_places(window: int) -> Int64[np.ndarray, "tokens tokens"]:
    """Row of the bias table for each pair of tokens of a window: their distance in rows and in columns."""
    rows, columns = np.divmod(np.arange(window**2), window)
    apart = [axis[:, None] - axis[None, :] + window - 1 for axis in (rows, columns)]
    return apart[0] * (2 * window - 1) + apart[1]


def strangers(side: int, window: int, shift: int) -> Bool[np.ndarray, "windows tokens tokens"]:
    """Pairs of tokens of a window that were not neighbours before the image was rolled by ``shift``."""
    edge = np.digitize(np.arange(side), [side - window, side - shift] if shift else [])
    region = edge[:, None] * 3 + edge[None, :]
    count = side // window
    cut = region.reshape(count, window, count, window).transpose(0, 2, 1, 3).reshape(count**2, window**2)
    return cut[:, :, None] != cut[:, None, :]


def check(side: int, window: int, shift: int) -> None:
    """Raises:
    ValueError: a side that is no whole number of windows; a shift that is not within one.
    """
    if side % window or not 0 <= shift < window:
        raise ValueError(f"side {side}, window {window}, shift {shift}; wanted whole windows, and a shift within one")
