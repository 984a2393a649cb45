"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Gelu(Enum):
    chosen = "chosen"
    fixed = "fixed"


class Fault(Enum):
    none = "none"
    wide_ranges = "wide_ranges"
    float_softmax = "float_softmax"
    base_two = "base_two"


@dataclass(frozen=True)
class Config:
    seed: int = option(7, "seeds batches and random scores")
    model: str = option("digits_vit.v1", "model of the zoo that is quantised, or deit (ImageNet, which must be at hand)")
    calibration: int = option(4, "batches that ranges are taken from before training")
    epochs: int = option(5, "passes over the training images with simulated integers")
    steps: int = option(0, "training steps instead of whole epochs; 0 for epochs")
    batch: int = option(64, "images of a batch")
    rate: float = option(1e-5, "peak learning rate of AdamW, cosine down to a fifteenth")
    weight_decay: float = option(1e-4, "of matrices")
    gelu: Gelu = option(Gelu.chosen, "N of ShiftGELU: chosen by layer from its range, or fixed to the 23 of the paper's code")
    newton: int = option(10, "Newton steps of the norm's square root; 1 is a control")
    fault: Fault = option(
        Fault.none,
        "controls: wide_ranges (every range 64 times too wide), float_softmax (the engine's attention weights go through float16), "
        "base_two (2^x instead of e^x)",
    )
    compared: int = option(360, "held-out images whose logits are compared between simulation and engines")
    rows: int = option(64, "rows of each of eight tensors that Shiftmax is measured on")
    vanishing: int = option(197, "tokens of the flat rows whose 8-bit weights are summed", unit="tokens")
    layers: int = option(6, "layers of all-MiniLM-L6-v2 that are run in integers")
    sentences: int = option(8, "passages that these are measured on, as many as they are calibrated on")
    length: int = option(64, "length of these passages", unit="tokens")
    dp4a: bool = option(True, "whether the modelled GPU multiplies four 8-bit pairs in the time of one float32; off is a control")
    images: int = option(1, "batch size of the modelled GPU", unit="images")
    latency: list[str] = option(["T", "S", "B"], "DeiT sizes whose forward passes are timed here")
    repeats: int = option(7, "timings of each, of which the median counts")

    def __post_init__(self) -> None:
        if unknown := set(self.latency) - {"T", "S", "B"}:
            raise ValueError(f"latency has {sorted(unknown)[0]!r}; wanted T, S or B")
        if not 1 <= self.layers <= 6:
            raise ValueError(f"layers is {self.layers}; all-MiniLM-L6-v2 has 6")
        if self.batch < 1 or self.calibration < 1:
            raise ValueError("batch and calibration must be 1 or more")


PRESETS = {
    "smoke": Config(
        calibration=2, steps=4, batch=32, compared=64, rows=16, layers=1, sentences=2, length=32, latency=["T"], repeats=3,
    ),
    "laptop": Config(),
    "paper": Config(model="deit", epochs=30, rate=1e-6, batch=128, images=8),
}  # fmt: skip
