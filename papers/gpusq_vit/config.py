"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Framework(Enum):
    torch = "torch"
    jax = "jax"


class Task(Enum):
    digits = "digits"
    photographs = "photographs"
    imagenet = "imagenet"


class BlockWeights(Enum):
    inverse = "inverse"
    uniform = "uniform"
    proportional = "proportional"


class Ragged(Enum):
    pad = "pad"
    dense = "dense"
    refuse = "refuse"


class Fault(Enum):
    none = "none"
    shuffled_teacher = "shuffled_teacher"
    shifted_places = "shifted_places"


@dataclass(frozen=True)
class Config:
    seed: int = option(5, "seeds batches and random weights")
    framework: Framework = option(Framework.torch, "framework that the models are trained in")
    task: Task = option(Task.digits, "what the vision transformer tells apart; digits takes the trained model of the zoo")
    trials: int = option(5, "times that each comparison is made, with other batches")

    steps_dense: int = option(400, "training steps of the dense model, where there is none in the zoo")
    steps_prune: int = option(200, "training steps of the pruned model")
    steps_quantize: int = option(100, "training steps of the quantised model")
    batch: int = option(64, "images of a training step")
    rate_dense: float = option(1e-3, "peak learning rate of the dense model")
    rate_prune: float = option(5e-4, "peak learning rate of the first stage")
    rate_quantize: float = option(2e-4, "peak learning rate of the second stage")
    calibration: int = option(256, "training images that the ranges of activations are taken from")

    alpha: float = option(1.0, "weight of the loss on labels")
    beta: float = option(10.0, "weight of the loss on logits")
    gamma: float = option(5.0, "weight of the loss on features")
    temperature: float = option(1.0, "temperature of the logits in their loss")
    critical: float = option(1 / 3, "share of the blocks, the last ones, whose features are mimicked")
    block_weights: BlockWeights = option(BlockWeights.inverse, "what a block weighs in the second stage by its loss in the first")
    classifier: bool = option(True, "the classifier is pruned and quantised too")
    ragged: Ragged = option(Ragged.pad, "layers whose inputs are no whole groups: filled up with zeros, left dense, or refused")

    recover: bool = option(True, "models are trained after pruning and quantising; False is a control")
    fault: Fault = option(Fault.none, "a wrong teacher for training without labels, or places off by one: controls")
    sparse_cost: bool = option(True, "the count of operations knows of zeros; False is a control")
    memory_cost: bool = option(True, "the roofline knows of memory; False is a control")

    repeats: int = option(5, "timings of each, of which the median counts")

    def __post_init__(self) -> None:
        if self.trials < 2:
            raise ValueError(f"trials is {self.trials}; wanted two or more, for an interval")
        if not 0 < self.critical <= 1:
            raise ValueError(f"critical is {self.critical}; wanted a share of the blocks, above 0 and at most 1")


PRESETS = {
    "smoke": Config(trials=2, steps_prune=16, steps_quantize=10, batch=32, calibration=64, repeats=3),
    "laptop": Config(),
    # DeiT-B on ImageNet; the paper does not give its learning rates.
    "paper": Config(
        task=Task.imagenet, trials=2, steps_prune=100_000, steps_quantize=100_000, batch=256, rate_prune=5e-5, rate_quantize=1e-5,
        calibration=1024,
    ),
}  # fmt: skip
