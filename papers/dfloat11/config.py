"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Checkpoint(Enum):
    draft = "draft"
    minilm = "minilm"


class Coding(Enum):
    huffman = "huffman"
    fixed = "fixed"


class Fault(Enum):
    none = "none"
    no_gaps = "no_gaps"


@dataclass(frozen=True)
class Config:
    seed: int = option(11, "seeds random weights and prompts")
    checkpoint: Checkpoint = option(
        Checkpoint.minilm, "weights that are measured: minilm (all-MiniLM-L6-v2) or draft (this repository's smallest)"
    )
    language_model: str = option("byte_lm.v1", "model of the zoo that runs compressed")
    threads: int = option(512, "threads of a block of the format")
    coding: Coding = option(Coding.huffman, "fixed gives every exponent 8 bits: a control")
    fault: Fault = option(Fault.none, "no_gaps decodes as if every piece began with a code: a control")
    gaussian: int = option(2_000_000, "normal numbers whose exponents are counted")
    context: int = option(128, "length of the prompts in the check of logits", unit="bytes")
    batches: list[int] = option([1, 4, 16], "batch sizes that decoding time is compared over")
    slow_weights: int = option(200_000, "weights that the slow encoder and decoder are timed on")
    repeats: int = option(5, "timings of each, of which the median counts")

    def __post_init__(self) -> None:
        if self.threads < 8 or self.threads & (self.threads - 1):
            raise ValueError(f"threads is {self.threads}; wanted a power of two, at least 8")
        if len(list(self.batches)) < 2:
            raise ValueError(f"batches is {list(self.batches)}; wanted two or more sizes")


PRESETS = {
    "smoke": Config(
        checkpoint=Checkpoint.draft, language_model="byte_lm_draft.v1", gaussian=500_000, context=32, batches=[1, 4],
        slow_weights=100_000, repeats=3,
    ),
    "laptop": Config(),
    "paper": Config(context=512, batches=[1, 2, 4, 8, 16, 32, 64], repeats=20),
}  # fmt: skip
