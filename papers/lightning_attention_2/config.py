"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from common.config import option


class Framework(Enum):
    torch = "torch"
    jax = "jax"


class Variant(Enum):
    loop = "loop"
    parallel = "parallel"
    left = "left"


class Fault(Enum):
    none = "none"
    drop_state = "drop_state"


@dataclass(frozen=True)
class Config:
    seed: int = option(2024, "seeds weights, batches and kernel inputs")
    framework: Framework = option(Framework.torch, "framework that the language model is trained in")

    variant: Variant = option(
        Variant.loop, "how Lightning Attention-2 is computed; left (its predecessor's product) is a control"
    )
    fault: Fault = option(Fault.none, "drop_state forgets the state between blocks: a control")
    context_cost: bool = option(True, "the cost model lets attention grow with the context; False is a control")

    check_length: int = option(100, "length of the sequences held against the recurrence", unit="tokens")
    check_dims: list[int] = option([16, 32], "head dimensions d of q and k, e of v in that check")

    heads: int = option(4, "heads in the timings")
    head_dim: int = option(64, "head dimension d = e in the timings")
    lengths: list[int] = option([2048, 4096, 8192, 16384], "sequence lengths of the timings, each twice the last", unit="tokens")
    repeats: int = option(3, "timings of each, of which the median counts")

    width: int = option(160, "width of the language model")
    depth: int = option(4, "layers of the language model")
    model_heads: int = option(5, "attention heads of the language model")
    hidden: int = option(432, "feed-forward width of the language model")
    seq_len: int = option(256, "training sequence", unit="bytes")
    batch: int = option(8, "sequences of a training step")
    steps: int = option(300, "training steps of each model")
    learning_rate: float = option(2e-3, "peak learning rate of AdamW")
    held_out_windows: int = option(64, "sequences of the held-out books that the final loss is taken over")

    def __post_init__(self) -> None:
        lengths = list(self.lengths)
        if len(lengths) < 2 or any(b != 2 * a for a, b in pairwise(lengths)):
            raise ValueError(f"lengths is {lengths}; wanted two or more, each twice the one before, such as [1024,2048,4096]")
        if len(self.check_dims) != 2:
            raise ValueError(f"check_dims is {list(self.check_dims)}; wanted the two numbers d and e")
        if self.width % self.model_heads:
            raise ValueError(f"width {self.width} is not a multiple of model_heads {self.model_heads}; change one of them")


PRESETS = {
    "smoke": Config(lengths=[512, 1024, 2048], repeats=7, width=64, depth=2, model_heads=2, hidden=176, steps=20, held_out_windows=16),
    "laptop": Config(),
    # TNL-0.4B on one A100 node; the paper gives layers and widths of its smaller models only in its code.
    "paper": Config(
        heads=32, head_dim=128, lengths=[2**i for i in range(9, 16)], width=1024, depth=24, model_heads=8, hidden=2816,
        seq_len=2048, batch=256, steps=100_000, learning_rate=5e-4, held_out_windows=1024,
    ),
}  # fmt: skip
