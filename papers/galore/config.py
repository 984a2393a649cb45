"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Decomposition(Enum):
    svd = "svd"
    randomized = "randomized"


NEVER = 10**9
"""A gap that no training reaches: the first subspace stays."""


@dataclass(frozen=True)
class Config:
    seed: int = option(7, "seeds weights, batches and adapters")
    mechanism: bool = option(
        True,
        "False, a control, switches it off: projected updates are multiplied by 0, moments are forgotten at each refresh, "
        "gradients are kept to the end of the backward pass",
    )

    width: int = option(128, "width of the language model")
    depth: int = option(4, "blocks of the language model")
    heads: int = option(4, "attention heads")
    hidden: int = option(344, "feed-forward width")
    vocabulary: int = option(256, "tokens; 256 are bytes")
    seq_len: int = option(128, "training sequence", unit="tokens")
    batch: int = option(8, "sequences of a training step")
    steps: int = option(200, "training steps of each method")
    held_out_windows: int = option(64, "sequences of the held-out books that the final loss is taken over")

    rank: int = option(32, "r of GaLore, LoRA and the low-rank model")
    gap: int = option(50, "T, steps from one decomposition to the next", unit="steps")
    gaps: list[int] = option([5, 20, 100, NEVER], "further T of the sweep; it ends with one that is never reached", unit="steps")
    scale: float = option(0.25, "alpha on GaLore's updates")
    decomposition: Decomposition = option(Decomposition.svd, "how the singular directions are found")
    lora_scale: float = option(1.0, "factor on B A")
    restarts: int = option(3, "segments of ReLoRA")
    rate_full: float = option(1.4e-3, "peak learning rate of Adam at full rank")
    rate_galore: float = option(1.6e-2, "peak learning rate of GaLore; alpha comes to it")
    rate_lora: float = option(3e-3, "peak learning rate of LoRA and ReLoRA")
    rate_rest: float = option(1.6e-2, "peak learning rate of embedding and norms, the same under every method")
    rate_low_rank: float = option(3e-3, "peak learning rate of the low-rank model")

    tasks: int = option(4, "tasks of the fine-tuning, of four")
    tune_steps: int = option(100, "steps of each fine-tuning")
    tune_batch: int = option(32, "images of a step")
    tune_rank: int = option(4, "r in fine-tuning")
    tune_gap: int = option(50, "T in fine-tuning", unit="steps")
    tune_scale: float = option(4.0, "alpha in fine-tuning")
    tune_lora_scale: float = option(4.0, "factor on B A in fine-tuning")
    tune_rates: list[float] = option(
        [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
        "peak learning rates in fine-tuning, of which each method takes the best on validation images",
    )

    layer: list[int] = option([1024, 4096], "rows and columns of the layer whose step is timed")
    repeats: int = option(7, "timings of each, of which the median counts")
    overhead_gap: int = option(200, "T that the cost of decompositions is spread over; 1 is a control", unit="steps")

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; change one of them")
        if min(self.gap, self.overhead_gap, self.tune_gap, *self.gaps) < 1:
            raise ValueError("gap, gaps, tune_gap and overhead_gap count steps; wanted 1 or more")
        if len(self.layer) != 2:
            raise ValueError(f"layer is {list(self.layer)}; wanted rows and columns")
        if not 1 <= self.tasks <= 4:
            raise ValueError(f"tasks is {self.tasks}; wanted 1 to 4")
        if not self.tune_rates or min(self.tune_rates) <= 0:
            raise ValueError(f"tune_rates is {list(self.tune_rates)}; wanted one rate or more, above 0")


PRESETS = {
    "smoke": Config(
        width=64, depth=2, heads=2, hidden=176, seq_len=64, steps=60, held_out_windows=32, rank=16, gap=20, gaps=[NEVER],
        tasks=1, tune_steps=40, tune_rates=[2e-3, 4e-3], layer=[256, 1024],
    ),
    "laptop": Config(),
    # The 60M model on C4 (paper, table 5); 10,000 steps of 512 sequences.
    "paper": Config(
        width=512, depth=8, heads=8, hidden=1376, vocabulary=32_000, seq_len=256, batch=512, steps=10_000, rank=128, gap=200,
        gaps=[50, 500, 1000, NEVER], rate_full=1e-3, rate_galore=1e-2, rate_lora=1e-3, rate_low_rank=1e-3, tune_steps=1000,
    ),
}  # fmt: skip
