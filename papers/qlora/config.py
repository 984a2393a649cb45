"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Framework(Enum):
    torch = "torch"
    jax = "jax"


class Book(Enum):
    shipped = "shipped"
    linear = "linear"


class Weights(Enum):
    model = "model"
    minilm = "minilm"


class Layers(Enum):
    every = "every"
    attention = "attention"


class Fault(Enum):
    none = "none"
    drop_offset = "drop_offset"
    keep_dense = "keep_dense"
    lose_pages = "lose_pages"


@dataclass(frozen=True)
class Config:
    seed: int = option(2305, "seeds adapters, batches and drawn numbers")
    framework: Framework = option(Framework.torch, "framework that the fine-tuning runs in")
    model: str = option("byte_lm.v1", "model of the zoo, trained on the King James text, that is quantised and fine-tuned")

    book: Book = option(Book.shipped, "values that stand for NF4: bitsandbytes' constants, or those of Int4 (control)")
    layers: Layers = option(Layers.every, "layers that have adapters; attention alone is a control")
    fault: Fault = option(
        Fault.none,
        "controls: drop_offset forgets the mean of the scales, keep_dense holds dequantised weights for the backward, "
        "lose_pages drops what is evicted",
    )

    quantised: list[str] = option(
        ["byte_lm.v1", "byte_lm_draft.v1"], "models of the zoo that are quantised without tuning; their losses are averaged"
    )

    rank: int = option(8, "rank r of the adapters")
    ranks: list[int] = option([2, 32], "further ranks of the sweep")
    alpha: float = option(16.0, "adapters are scaled by alpha / r; 0 is a control")
    dropout: float = option(0.0, "dropout before the adapters")
    steps: int = option(250, "training steps of each variant")
    batch: int = option(4, "sequences of a step")
    seq_len: int = option(128, "training sequence", unit="bytes")
    rate: float = option(4e-3, "learning rate of adapters")
    full_rate: float = option(2e-3, "learning rate when all weights are trained")
    held_out_windows: int = option(64, "held-out sequences of the fine-tuning text that losses are taken over")
    quantised_windows: int = option(96, "held-out sequences of the first text, for losses without tuning")

    weights: Weights = option(
        Weights.minilm, "trained weights whose quantisation errors are measured: minilm (all-MiniLM-L6-v2), or those of model"
    )
    blocks: int = option(16384, "blocks of 64 normal numbers that quantisation errors are taken over")
    elo_orders: int = option(10_000, "random orders of the tournament's games")

    memory_width: int = option(512, "width of the model whose step is measured for its memory")
    memory_depth: int = option(4, "its layers")
    memory_tokens: int = option(32, "its tokens")

    paged_parameters: int = option(4_000_000, "parameters whose optimizer state is paged, in the timing")
    page: int = option(1024, "bytes of a page, in KiB", unit="KiB")
    resident: float = option(1.0, "share of the state that may be resident in the timing; little is a control")
    long_length: int = option(256, "length of the one long batch", unit="bytes")
    repeats: int = option(5, "timings of each, of which the median counts")

    def __post_init__(self) -> None:
        if self.rank < 1 or any(r < 1 for r in self.ranks):
            raise ValueError(f"rank is {self.rank} and ranks {list(self.ranks)}; wanted at least 1")
        if self.long_length <= self.seq_len // 2:
            raise ValueError(f"long_length is {self.long_length}; wanted more than half of seq_len = {self.seq_len}")


PRESETS = {
    "smoke": Config(
        model="byte_lm_draft.v1", quantised=["byte_lm_draft.v1"], weights=Weights.model, ranks=[2, 32], steps=24, batch=4, seq_len=64, held_out_windows=48, quantised_windows=64,
        blocks=4096, elo_orders=300, memory_width=768, memory_depth=1, memory_tokens=16, paged_parameters=2_000_000, long_length=256, repeats=5,
    ),
    "laptop": Config(),
    # Guanaco: LLaMA, r = 64, batch 16, 1875 steps of 512 tokens (QLoRA, appendix B.2).
    "paper": Config(
        model="llama_65b", quantised=["llama_65b"], rank=64, ranks=[8, 16, 32, 128, 256], dropout=0.05, steps=1875, batch=16, seq_len=512, rate=1e-4,
        full_rate=1e-5, memory_width=8192, memory_depth=80, memory_tokens=512, long_length=2048,
    ),
}  # fmt: skip
