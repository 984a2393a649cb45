"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Fault(Enum):
    none = "none"
    late = "late"  # blocks that have travelled are filed under the neighbour's number
    divided = "divided"  # gradients of q, k and v are divided by the ranks, and nothing makes up for it
    alone = "alone"  # gradients of the weights are not summed over the sequence
    whole = "whole"  # the memory model does not split the sequence
    dense = "dense"  # attention over all keys where Linformer's is wanted
    gathered = "gathered"  # all keys and values are gathered where a ring is wanted
    slow = "slow"  # every chunk goes around many times


@dataclass(frozen=True)
class Config:
    seed: int = option(2105, "seeds weights, windows of text and masks")
    fault: Fault = option(Fault.none, "what is broken, one thing for each control")

    ranks: int = option(4, "processes of the training and of the counts")
    depth: int = option(4, "blocks of the encoder")
    width: int = option(128, "features of a token")
    heads: int = option(8, "attention heads")
    length: int = option(512, "tokens of a sequence")
    batch: int = option(1, "sequences of a step")
    steps: int = option(60, "steps of the training")
    rate: float = option(1e-3, "Adam's rate; 0 is a control")
    held: int = option(8, "held-out sequences that the fall of the loss is taken on")

    grids: int = option(
        4, "grids of data, pipeline, tensor and sequence that are run: three of 2 x 2 ranks, and one of 2 x 2 x 2 x 2"
    )
    grid_steps: int = option(5, "steps of each grid")
    twin_steps: int = option(3, "steps of PyTorch and JAX in float64")
    twin_meshes: bool = option(
        True, "JAX also on meshes of one axis, with Linformer and with the decoder; False: on all axes at once"
    )

    peak_length: int = option(2048, "tokens of the attention whose memory and time are measured")
    repeats: int = option(7, "timings of each, of which the median counts")
    weak_chunk: int = option(1024, "tokens of each rank in the weak scaling")

    devices: int = option(64, "devices of sequence parallelism in the memory model")
    memory: float = option(16.0, "memory of a device", unit="GiB")

    def __post_init__(self) -> None:
        if self.ranks < 2:
            raise ValueError(f"ranks is {self.ranks}; wanted two or more, or nothing is sent")
        if self.width % self.heads or self.heads % self.ranks:
            raise ValueError(
                f"width is {self.width}, heads {self.heads}, ranks {self.ranks}; wanted heads that divide the width, "
                "and ranks that divide the heads, for the comparison with tensor parallelism"
            )
        if self.length % self.ranks or self.peak_length % 2:
            raise ValueError(
                f"length is {self.length} for {self.ranks} ranks, peak_length {self.peak_length} for 2; wanted multiples of the "
                f"ranks: pad length by {-self.length % self.ranks}"
            )
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps is {self.steps} and batch {self.batch}; wanted at least one of each")


LAUNCHED = 16
"""Ranks that the largest grid takes, so that a launcher must have started."""

# The paper's own scale: BERT Base, by as many ranks as there are launched. It runs under torchrun or on SLURM.
PRESETS = {
    "smoke": Config(
        ranks=2, depth=2, width=32, heads=4, length=16, batch=4, steps=3, held=8, grids=3, grid_steps=2, twin_steps=2, twin_meshes=False,
        peak_length=256, repeats=3, weak_chunk=256,
    ),
    "laptop": Config(),
    "paper": Config(ranks=4, depth=12, width=768, heads=12, length=512, batch=64, steps=10_000),
}  # fmt: skip
