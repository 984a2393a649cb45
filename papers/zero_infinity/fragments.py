"""Tiles under the engine, in an arena that is cut into pieces: which layers train, and which do not?"""

from __future__ import annotations

import torch

from common import UserError
from common.distributed import alone
from common.ledger import Value
from common.offload import Arena, OutOfBudget, Pool
from common.runner import Run
from papers.zero_infinity import allocator, published
from papers.zero_infinity.config import Config
from papers.zero_infinity.tiling_torch import TiledLinear
from papers.zero_infinity.zero3 import ZeRO3

HIDDEN = tuple(1024 * k for k in (8, 16, 32, 64))
TILES = (1, 2, 4, 8, 16, 32, 64)
SCALE = 256
"""Widths are divided by this for the arena, bytes by its square; float32 in place of 16 bits doubles them again."""


def predicted(config: Config, run: Run) -> dict[str, Value]:
    """The allocator's table at the paper's size."""
    tiles = TILES if config.tiled else (1,) * len(TILES)
    fits = {
        (hidden, count): allocator.layer_fits(hidden, real) for hidden in HIDDEN for count, real in zip(TILES, tiles, strict=True)
    }
    return {
        "tiling": {
            "8K whole": fits[HIDDEN[0], 1],
            "64K in 16 tiles": fits[HIDDEN[-1], 16],
            "monotone": allocator.monotone(fits),
        },
        "tiling_largest": {"whole": allocator.largest(fits, 1), "16 tiles": allocator.largest(fits, 16)},
    }


def measured(config: Config, run: Run) -> dict[str, Value]:
    """Largest layer that trains in a fragmented arena, whole and in 16 tiles, and where the allocator's table is wrong."""
    trained = {(hidden, tiles): trains(hidden // SCALE, tiles if config.tiled else 1) for hidden in HIDDEN for tiles in TILES}
    table = allocator.table(HIDDEN, TILES)
    return {
        "tiling_here": {
            "gain of 16 tiles": allocator.largest(trained, 16) / max(allocator.largest(trained, 1), 1),
            "pairs that differ from the table": sum(trained[pair] != table[pair] for pair in table),
        }
    }


def fragmented(piece: int, pieces: int) -> Arena:
    """An arena whose free memory lies in pieces that do not touch, as something is left between them."""
    arena = Arena(pieces * (piece + 64))
    blocks = [(arena.allocate(piece, "free later"), arena.allocate(64, "in between")) for _ in range(pieces)]
    for free, _ in blocks:
        free.free()
    return arena


def trains(hidden: int, tiles: int) -> bool:
    """Whether one step of the layer hidden x 4 hidden, cut along its output, goes through."""
    piece = 2 * published.FRAGMENT // SCALE**2
    arena = fragmented(piece, published.GPU_MEMORY // published.FRAGMENT)

    def build() -> torch.nn.Module:
        return TiledLinear(hidden, 4 * hidden, bias=False, out_splits=tiles)

    try:
        engine = ZeRO3(build, alone(), arena=arena, pool=Pool(64 * 2**20))
        engine.step(lambda model, x: model(x).square().mean(), torch.ones(2, hidden))
    except (OutOfBudget, UserError):
        return False
    engine.close()
    return True
