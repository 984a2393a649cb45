"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Weights(Enum):
    random = "random"
    minilm = "minilm"


class Rounding(Enum):
    gptq = "gptq"
    nearest = "nearest"


class Product(Enum):
    packed = "packed"
    unpack = "unpack"


class Fault(Enum):
    none = "none"
    nibbles = "nibbles"


@dataclass(frozen=True)
class Config:
    seed: int = option(7, "seeds activations, requests and calibration windows")
    bits: int = option(4, "bits of a stored weight in the models of time; 16 is a control")
    fault: Fault = option(Fault.none, "nibbles turns every word by one weight before the product: a control")
    rounding: Rounding = option(Rounding.gptq, "how the language model is rounded; nearest in place of GPTQ is a control")
    product: Product = option(
        Product.packed, "unpack writes all weights out before each product, the way that the paper does without: a control"
    )
    overhead: float = option(2e-3, "assumed time between two steps of the serving engine", unit="s")

    weights: Weights = option(Weights.minilm, "weights of the layer that the kernels are held to: MiniLM's or random ones")
    sizes: list[int] = option([1, 2, 3, 8, 16, 24, 64, 118, 152], "rows m of x in that check")
    language_model: str = option("byte_lm.v1", "model of the zoo that is rounded, packed and evaluated")
    context: int = option(512, "length of the windows of text", unit="bytes")
    calibration: int = option(128, "windows that the Hessians are summed over")
    held_out: int = option(128, "windows of the held-out books that the loss is taken over")
    requests: int = option(200, "requests in the curves of latency over load")
    k: int = option(4096, "rows of the weights in the timings")
    n: int = option(4096, "columns of the weights in the timings")
    batches: list[int] = option([1, 4, 16, 64], "rows of x in the timings")
    repeats: int = option(15, "timings of each, of which the median counts")

    def __post_init__(self) -> None:
        if self.bits not in (4, 16):
            raise ValueError(f"bits is {self.bits}; wanted 4, or 16 for the control")
        if self.k % 128 or self.n % 256:
            raise ValueError(f"k is {self.k} and n is {self.n}; wanted k a multiple of 128 and n of 256")
        if not {1, 16} <= set(self.batches):
            raise ValueError(f"batches is {list(self.batches)}; wanted 1 and 16 among them, which claims are about")


PRESETS = {
    "smoke": Config(
        weights=Weights.random, sizes=[1, 3, 16, 24], language_model="byte_lm_draft.v1", context=256, calibration=32, held_out=64,
        requests=60, k=1024, n=1024, batches=[1, 16], repeats=7,
    ),
    "laptop": Config(),
    # The ideal matrix of an A10 is 1.4 billion weights; a product of its size is no work for a CPU.
    "paper": Config(requests=2000, k=18432, n=73728, batches=[1, 2, 4, 8, 16, 32, 64, 128], repeats=50),
}  # fmt: skip
