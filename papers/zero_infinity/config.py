"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import option
from papers.zero_infinity.capacity import Tier
from papers.zero_infinity.partition import Partition
from papers.zero_infinity.published import TRAINED


@dataclass(frozen=True)
class Config:
    seed: int = option(2021, "seeds weights and batches")

    partition: Partition = option(Partition.slices, "slices on all ranks, or each tensor whole on one: a control")
    reduce: bool = option(True, "gradients are reduced over the ranks; False is a control")
    overlap: bool = option(True, "reads, updates and writes at the same time; False is a control")
    files: bool = option(True, "states in files; False keeps them in host memory, a control")
    tiled: bool = option(True, "layers are cut into tiles; False is a control")
    tier: Tier = option(Tier.nvme, "slowest memory that the capacity model may use; cpu is a control")
    aggregate: bool = option(True, "slow memory gets faster with the number of nodes; False is a control")
    working: bool = option(True, "the model of 3D parallelism counts more than states; False is a control")

    ranks: int = option(4, "ranks of the comparison of links")
    devices: int = option(2, "devices of the mesh in JAX")
    check_ranks: list[int] = option([1, 2, 4], "numbers of ranks that are compared with one process")
    check_width: int = option(64, "width of the models that are compared")
    check_steps: int = option(20, "steps of the comparison in float32")
    check_steps64: int = option(6, "steps of the comparisons in float64")
    larger_depth: int = option(12, "blocks of the model beyond the caps")
    resident_layers: int = option(24, "layers, of 4 MiB of weights each, whose training's memory is watched")
    link_layers: int = option(8, "layers that are fetched in the comparison of links")
    link_seconds: float = option(0.1, "time of a whole layer over one link, set by throttling", unit="s")

    width: int = option(128, "width of the character model")
    depth: int = option(6, "its blocks")
    seq_len: int = option(128, "its sequences", unit="bytes")
    batch: int = option(16, "sequences of a step, of both ranks together")
    steps: int = option(60, "steps of its training")
    rate: float = option(3e-3, "its learning rate")

    swap_chunk: int = option(2**18, "numbers of a chunk in the timing of the optimizer's pipeline")
    swap_chunks: int = option(24, "its chunks")
    splits: int = option(4, "parts of input and of output in the timing of tiles; many is a control")

    model: str = option(
        "", "model of the paper, such as 10B; refused, as the engine has been run on CPU ranks alone; empty: none"
    )

    def __post_init__(self) -> None:
        if self.ranks < 2 or self.devices < 2:
            raise ValueError(f"ranks is {self.ranks} and devices {self.devices}; one alone shares nothing, so wanted at least 2")
        if not self.check_ranks or min(self.check_ranks) < 1:
            raise ValueError(f"check_ranks is {self.check_ranks}; wanted one number of ranks or more, each from 1")
        if self.check_width % 32 or self.width % 32:
            raise ValueError("check_width and width must be multiples of 32, the width of a head")
        if self.batch % 2 or self.batch < 2:
            raise ValueError(f"batch is {self.batch}; two ranks share it, so wanted an even number")
        if self.model and self.model not in TRAINED:
            raise ValueError(f"model is {self.model!r}; wanted one of {', '.join(TRAINED)}, or empty")


PRESETS = {
    "smoke": Config(
        check_ranks=[2], check_steps=10, check_steps64=2, larger_depth=6, resident_layers=8, link_layers=3, width=64, depth=2, seq_len=32, batch=8,
        steps=10, swap_chunk=2**16, swap_chunks=12,
    ),
    "laptop": Config(),
    "paper": Config(model="10B"),
}  # fmt: skip
