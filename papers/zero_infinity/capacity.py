"""What fits where: the memory formulas held against the machine's tiers."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import ceil
from typing import Any

import numpy as np

from papers.zero_infinity import memory, published
from papers.zero_infinity.published import Model


class Tier(Enum):
    """Slowest memory that the states may go to."""

    gpu = "gpu"
    cpu = "cpu"
    nvme = "nvme"


def tier_bytes(tier: Tier, nodes: int) -> float:
    """Of all nodes together."""
    one = {Tier.gpu: published.GPUS * published.GPU_MEMORY, Tier.cpu: published.CPU_MEMORY, Tier.nvme: published.NVME}
    return float(nodes * one[tier])


def fits(model: Model, nodes: int, tier: Tier, tiles: int = 1, batch: int = 1) -> dict[str, bool]:
    """Whether ZeRO-Infinity can train a model: states in the tier, checkpoints in CPU memory, working memory on the GPU.

    Args:
        tiles: that the largest layer is cut into.
        batch: sequences for each GPU.
    """
    layers, hidden, heads = model
    working = memory.state_working(hidden) / tiles + memory.activation_working(hidden, heads, batch, published.SEQ)
    saved = memory.checkpoints(layers, hidden, batch * published.GPUS * nodes, published.SEQ)
    states = memory.model_states(layers, hidden)
    host = tier_bytes(Tier.cpu, nodes) - (states if tier is Tier.cpu else 0)
    return {
        "states": bool(states <= tier_bytes(tier, nodes)),
        "checkpoints": bool(saved <= host),
        "working memory": bool(working <= published.GPU_MEMORY - published.CONTEXT),
    }


def gpus_of_3d(model: Model, working: bool = True) -> int:
    """V100 that tensor and pipeline parallelism need for a model, all of it in GPU memory.

    Each GPU has its share of the states and, of one sequence at a time, a 16th of the working memory of activations. Each
    of its in-flight sequences, as many as there are stages, leaves checkpoints of its own blocks, so that together they are
    those of one sequence through all blocks.

    Args:
        working: False counts the states alone.
    """
    layers, hidden, heads = model
    room = published.GPU_MEMORY - (_overhead_of_3d(layers, hidden, heads) if working else 0)
    return ceil(memory.model_states(layers, hidden) / room)


def largest(nodes: int, tier: Tier) -> float:
    """Parameters of the largest model that ZeRO-Infinity can train, tiled as needed; models grow as in the paper's table."""
    return _last(lambda model: all(fits(model, nodes, tier, tiles=64).values()))


def largest_of_3d(gpus: int) -> float:
    """Parameters of the largest model that fits ``gpus`` with tensor and pipeline parallelism."""

    def enough(model: Model) -> bool:
        room = published.GPU_MEMORY - _overhead_of_3d(*model)
        return bool(room > 0 and memory.model_states(model.layers, model.hidden) / room <= gpus)

    return _last(enough)


def _overhead_of_3d(layers: Any, hidden: Any, heads: Any) -> Any:
    cut = published.TENSOR_PARALLEL
    in_flight = memory.checkpoints(layers, hidden, 1, published.SEQ)
    between = memory.activation_working(hidden, heads, 1, published.SEQ) / cut
    return published.CONTEXT + in_flight + between


def _last(enough: Callable[[Model], Any]) -> float:
    """Of models of growing size, the last that is enough; their shapes lie between, and beyond, those of the table."""
    known = list(published.TABLE.values())
    sizes = np.log([memory.parameters(model.layers, model.hidden) for model in known])
    heads = np.log([model.heads for model in known])
    layers = np.log([model.layers for model in known])
    best = 0.0
    for size in np.log(np.geomspace(1e10, 3e14, 2000)):
        depth = np.exp(np.interp(size, sizes, layers))
        width = np.sqrt(np.exp(size) / 12 / depth)
        model = Model(depth, width, np.exp(np.interp(size, sizes, heads)))
        if not enough(model):
            break
        best = float(np.exp(size))
    return best
