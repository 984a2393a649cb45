"""Who computes which tile: MARLIN's stripes, beside a column for each block and an even split as in stream-K.

Tiles of a (k_tiles, n_tiles) grid are counted down the columns; a schedule gives every tile to a block. What a column's blocks have
summed up is handed from the bottom one to the top one, through the output.

Source: MARLIN, section 3.4, "striped partitioning"; Osama et al., Stream-K (arXiv 2301.03598).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True, eq=False)
class Schedule:
    """Attributes:
    owner: the block of each tile.
    blocks: that there are, whether they have work or not.
    """

    owner: Int[np.ndarray, "k_tiles n_tiles"]
    blocks: int

    @property
    def loads(self) -> Int[np.ndarray, " blocks"]:
        """Tiles of each block."""
        return np.bincount(self.owner.reshape(-1), minlength=self.blocks)

    @property
    def iterations(self) -> int:
        """Tiles of the block that has most."""
        return int(self.loads.max())

    @property
    def used(self) -> int:
        """Blocks with work."""
        return int(np.count_nonzero(self.loads))

    @property
    def sharers(self) -> Int[np.ndarray, " n_tiles"]:
        """Blocks of each column."""
        return 1 + np.count_nonzero(np.diff(self.owner, axis=0), axis=0)

    @property
    def hand_overs(self) -> int:
        """Sums that pass through memory."""
        return int((self.sharers - 1).sum())

    @property
    def chain(self) -> int:
        """Blocks that hand over to each other in one column, at most."""
        return int(self.sharers.max())

    @property
    def efficiency(self) -> float:
        """Tiles over the places for tiles while the longest block runs."""
        return self.owner.size / (self.blocks * self.iterations)


def striped(k_tiles: int, n_tiles: int, blocks: int, unit: int = 1) -> Schedule:
    """Each block has the next ceil(tiles / blocks) tiles, rounded up to a multiple of ``unit``, the tiles of a group, so that no
    stripe begins inside one; stripes run on from one column to the next."""
    _check(k_tiles, n_tiles, blocks)
    total = k_tiles * n_tiles
    each = math.ceil(math.ceil(total / blocks) / unit) * unit
    return _schedule(np.arange(total) // each, k_tiles, blocks)


def by_column(k_tiles: int, n_tiles: int, blocks: int) -> Schedule:
    """Whole columns in turn: nothing is handed over, and blocks without a column in the last round stand idle."""
    _check(k_tiles, n_tiles, blocks)
    return _schedule(np.arange(k_tiles * n_tiles) // k_tiles % blocks, k_tiles, blocks)


def even(k_tiles: int, n_tiles: int, blocks: int) -> Schedule:
    """Stripes whose lengths differ by one tile at most, wherever groups begin (stream-K)."""
    _check(k_tiles, n_tiles, blocks)
    total = k_tiles * n_tiles
    return _schedule(np.arange(total) * blocks // total, k_tiles, blocks)


def _schedule(owner: np.ndarray, k_tiles: int, blocks: int) -> Schedule:
    return Schedule(owner.reshape(-1, k_tiles).T, blocks)


def _check(k_tiles: int, n_tiles: int, blocks: int) -> None:
    if min(k_tiles, n_tiles, blocks) < 1:
        raise ValueError(f"{k_tiles} x {n_tiles} tiles on {blocks} blocks; wanted at least one of each")
