"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.fast_model_scaling.scaling import RULES, scaling_factors


class Framework(Enum):
    torch = "torch"
    jax = "jax"


BASES = ["EN-tiny", "RegNet-tiny"]


@dataclass(frozen=True)
class Config:
    seed: int = option(21, "seeds crops, weights and batches")
    framework: Framework = option(Framework.torch, "framework that trains")
    mechanism: bool = option(
        True,
        "False, a control: multiply-adds stand in for activations, or networks get each other's counts; memory takes no time; "
        "nothing is scaled; JAX computes in 32 bits where it is compared",
    )

    everything: bool = option(True, "build, count and sweep all networks of the ledger; False: one of them")
    grid: int = option(12, "values of alpha, and of s, at which the closed form is held against layer by layer")
    swept: int = option(100, "values of alpha, and of s, of the timed sweep")

    timed: bool = option(True, "take times; False leaves all claims about them out")
    timed_bases: list[str] = option(BASES, "networks that are scaled and timed: tiny or published ones")
    timed_rules: list[str] = option(list(RULES), "rules by which they are")
    timed_s: list[float] = option([4.0, 16.0], "scales at which they are, beside 1")
    timed_also: list[float] = option([8.0], "scales by the first rule alone")
    timed_batch: int = option(32, "images of a timed pass")
    repeats: int = option(7, "measurements of each time, of which the median counts")

    trained_rules: list[str] = option(list(RULES), "rules by which networks are scaled and trained")
    trained_s: list[float] = option([2.0, 4.0, 8.0], "scales at which they are, beside 1")
    compared_s: float = option(4.0, "scale at which accuracies are compared")
    seeds: int = option(2, "trainings of each")
    steps: int = option(60, "steps of a training")
    batch: int = option(32, "images of a step")
    rate: float = option(3e-3, "peak learning rate of AdamW")
    train_images: int = option(1024, "crops of each photograph to train on")
    test_images: int = option(128, "crops of each photograph to test on")
    workers: int = option(2, "processes that trainings are dealt to")

    def __post_init__(self) -> None:
        counts = ("grid", "swept", "timed_batch", "repeats", "seeds", "batch", "train_images", "test_images", "workers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        if self.steps < 10:
            raise ValueError(f"steps is {self.steps}; wanted at least 10, of which a tenth warm up")
        for rule in [*self.timed_rules, *self.trained_rules]:
            if rule not in RULES:
                raise ValueError(f"no rule {rule!r}; there are {', '.join(RULES)}")
        for s in [*self.timed_s, *self.timed_also, *self.trained_s, self.compared_s]:
            scaling_factors("d", s)
        if self.compared_s not in self.trained_s:
            raise ValueError(f"compared_s is {self.compared_s}; wanted one of trained_s, {self.trained_s}")


PRESETS = {
    "smoke": Config(
        everything=False, grid=4, timed_rules=["fast", "dwr"], timed_s=[4.0], timed_also=[], timed_batch=16, repeats=3,
        trained_rules=["w", "dwr", "fast"], trained_s=[4.0], seeds=1, steps=12, train_images=256, test_images=32, workers=1,
    ),
    "laptop": Config(),
    "paper": Config(
        timed_bases=["EfficientNet-B0", "RegNetY-400MF", "RegNetY-4.0GF"], timed_batch=64, seeds=5, steps=20_000, batch=128,
        workers=1,
    ),
}  # fmt: skip
