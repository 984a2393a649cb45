"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape


class Fault(Enum):
    """A sum that is left out: controls of the claims of equality."""

    none = "none"
    tied = "tied"  # of the embedding's gradient over the first and the last stage
    replicas = "replicas"  # of the gradients over the replicas


@dataclass(frozen=True)
class Config:
    seed: int = option(2021, "seeds weights and batches")

    interleave: bool = option(True, "two chunks on a rank where the paper has two; False is a control")
    scatter: bool = option(True, "tensor ranks share out what goes to the next stage")
    fault: Fault = option(Fault.none, "a sum of the grid that is left out; controls")
    free_link: bool = option(False, "communication takes no time in the model of time; a control")
    vectorised: bool = option(True, "the sweep runs over arrays; False is a control")

    width: int = option(128, "h of the model that is trained")
    depth: int = option(8, "l, its layers")
    heads: int = option(4, "its heads")
    seq_len: int = option(64, "s, its context", unit="bytes")
    batch: int = option(8, "B, sequences of a step")
    microbatch: int = option(1, "b, sequences of a pass")
    tensor: int = option(2, "t, ranks that share a layer")
    pipeline: int = option(2, "p, ranks that share the depth")
    data: int = option(2, "d, replicas")
    steps: int = option(50, "steps of the training in float32 that is compared with one process")
    rate: float = option(1e-3, "its learning rate")

    forward_ms: float = option(20.0, "time of a forward pass of a whole rank's layers in the sleeping pipeline", unit="ms")
    backward_ms: float = option(40.0, "time of a backward pass there", unit="ms")
    batches: int = option(5, "batches of each schedule that are timed, of which the median counts")
    peer: bool = option(True, "compare with torch's own pipeline, whose import takes seconds in every process")
    sweep: int = option(100_000, "configurations of the sweep")

    row: str = option("", "row of table 1 that is timed on GPUs, such as 1008.0B; empty: none")

    def __post_init__(self) -> None:
        if self.forward_ms <= 0 or self.backward_ms <= 0:
            raise ValueError(f"forward_ms={self.forward_ms} and backward_ms={self.backward_ms}; wanted positive times")
        if min(self.steps, self.batches, self.sweep) < 1:
            raise ValueError("steps, batches and sweep must be 1 or more")
        if self.pipeline < 2 or self.tensor < 2:
            raise ValueError(
                f"tensor={self.tensor} and pipeline={self.pipeline}; wanted 2 or more of each: it is them that is tested"
            )
        for chunks in (1, 2):
            layout = self.layout(chunks)
            layout.check(self.shape)
            layout.microbatches(self.batch)

    @property
    def shape(self) -> Shape:
        """The model that is trained, on bytes."""
        return Shape(vocabulary=256, width=self.width, depth=self.depth, heads=self.heads, context=self.seq_len)

    def layout(self, chunks: int = 1) -> Layout:
        return Layout(tensor=self.tensor, pipeline=self.pipeline, data=self.data, chunks=chunks, microbatch=self.microbatch)


PRESETS = {
    "smoke": Config(
        width=64,
        depth=4,
        seq_len=32,
        batch=4,
        data=1,
        steps=3,
        batches=1,
        peer=False,
        sweep=20_000,
        forward_ms=10.0,
        backward_ms=20.0,
    ),
    "laptop": Config(),
    "paper": Config(row="1008.0B"),
}
