"""Options of the reproduction and its three presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from common.config import option


class Framework(Enum):
    torch = "torch"
    jax = "jax"


class Schedule(Enum):
    """How often a step visits each block."""

    zo2 = "zo2"  # once: update of the last step, + forward, - forward, restore
    eager = "eager"  # twice: the update has a visit of its own at the end of its step
    two = "two"  # twice: restore and update of the last step, + forward; - forward
    three = "three"  # three times: + forward; - forward; restore and update


class Wire(Enum):
    fp32 = "float32"
    fp16 = "float16"
    bf16 = "bfloat16"


class Fault(Enum):
    none = "none"
    no_flush = "no_flush"


@dataclass(frozen=True)
class Config:
    seed: int = option(2025, "seeds weights, batches and noise")
    framework: Framework = option(Framework.torch, "framework that the fine-tuning runs in")

    schedule: Schedule = option(Schedule.zo2, "how often a step visits each block; all but zo2 are controls")
    overlap: bool = option(True, "copies and computation at the same time; False is a control")
    bucket: bool = option(True, "a block is one copy into a slot that stays; False: each tensor is allocated and copied")
    wire: Wire = option(Wire.fp32, "blocks on the host and in the copies of the fine-tuning; narrower is the AMP mode")
    offload: bool = option(True, "the memory model sends blocks away; False is a control")
    free_link: bool = option(False, "copies take no time; a control of the claims about time")
    fault: Fault = option(Fault.none, "no_flush reads the weights with an update still pending: a control")

    check_width: int = option(64, "width of the models that are compared bit by bit")
    check_depth: int = option(4, "their blocks")
    check_steps: int = option(50, "steps K of each comparison")
    twin_steps: int = option(4, "steps of the comparison of PyTorch and JAX in float64")

    model: str = option("byte_lm.v1", "trained model that is fine-tuned, by its name in the zoo")
    steps: int = option(400, "steps of the fine-tuning")
    batch: int = option(4, "sequences of a step")
    seq_len: int = option(128, "length of a sequence", unit="bytes")
    rate: float = option(1e-4, "learning rate; 0 is a control")
    epsilon: float = option(1e-3, "size of the perturbation")
    decay: float = option(0.0, "weight decay")
    held_out_windows: int = option(48, "sequences of held-out Python source that the loss is taken over")

    time_width: int = option(256, "width of the model in the timings")
    time_depth: int = option(12, "its blocks")
    time_len: int = option(256, "its sequence", unit="tokens")
    time_steps: int = option(5, "timed steps of each variant, of which the median counts")
    copy_share: float = option(0.8, "time of a copy of a block as part of the time of its computation, set by throttling")

    opt: str = option("", "OPT model whose speed is measured on a GPU, such as 6.7B; empty: none")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise ValueError(f"rate is {self.rate}; wanted a number of at least 0")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon is {self.epsilon}; wanted a positive number: without a perturbation there is no gradient")
        if not 0 < self.copy_share <= 1:
            raise ValueError(f"copy_share is {self.copy_share}; wanted a number above 0 and up to 1")
        if self.check_depth < 4 or self.time_depth < 4:
            raise ValueError("check_depth and time_depth must be at least 4: three blocks are on the device at once")
        if self.check_width % 32 or self.time_width % 32:
            raise ValueError("check_width and time_width must be multiples of 32, the width of a head")


PRESETS = {
    "smoke": Config(
        check_steps=5, twin_steps=2, model="byte_lm_draft.v1", steps=40, batch=2, seq_len=96, held_out_windows=16,
        time_width=128, time_len=128, time_steps=3, time_depth=6,
    ),
    "laptop": Config(),
    "paper": Config(opt="6.7B", steps=20_000),
}  # fmt: skip
