"""What slices are for: every rank pulls its own part through its own link (paper, section 6.1)."""

from __future__ import annotations

import time
from typing import Any

import torch

from common.distributed import Group, Ranks
from common.ledger import Value
from common.offload import Arena, Pool, Trace
from common.runner import Run
from papers.zero_infinity.config import Config
from papers.zero_infinity.partition import Partition
from papers.zero_infinity.zero3 import Offload, ZeRO3

SIDE = 256
"""Width of the layers."""


def bandwidth(config: Config, run: Run) -> dict[str, Value]:
    """The busiest link's share of a layer's bytes, and the speed of fetching over one owner's link."""
    with Ranks(config.ranks) as group, run.timing():
        found = {mode: group.run(fetch, mode, config) for mode in {config.partition, Partition.owner}}
    shares = {mode.value: max(each["share"] for each in ranks) for mode, ranks in found.items()}
    seconds = {mode: max(each["seconds"] for each in ranks) for mode, ranks in found.items()}
    speed: Value = seconds[Partition.owner] / seconds[config.partition] / config.ranks
    run.keep("links", {"seconds": {mode.value: each for mode, each in seconds.items()}, "shares": shares})
    return {
        "link_bytes": {"slices": shares[config.partition.value] * config.ranks, "owner": shares["owner"] * config.ranks},
        "link_speed": run.busy or speed,
    }


def fetch(group: Group, partition: Partition, config: Config) -> dict[str, Any]:
    """One forward pass on demand over links that are throttled alike for every rank."""
    layer = SIDE * SIDE * 4

    def build() -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(config.link_layers)))

    trace = Trace()
    engine = ZeRO3(
        build, group, arena=Arena(16 * layer), pool=Pool(40 * config.link_layers * layer),
        offload=Offload(link=layer / config.link_seconds), partition=partition, overlap=False, trace=trace,
    )  # fmt: skip
    trace.clear()
    group.barrier()
    start = time.perf_counter()
    engine.evaluate(lambda model, x: model(x).mean(), torch.ones(1, SIDE))
    group.barrier()
    seconds = time.perf_counter() - start
    largest: dict[str, int] = {}
    for move in trace.moves:
        if move.lane == "upload":
            largest[move.name] = largest.get(move.name, 0) + move.bytes
    engine.close()
    return {"seconds": seconds, "share": max(largest.values(), default=0) / layer}
