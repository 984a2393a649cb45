"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.proxyless_nas.objective import Form


class Where(Enum):
    digits = "digits"
    photos = "photos"
    imagenet = "imagenet"


class Mode(Enum):
    """How places run in an architecture step; see papers.proxyless_nas.gates.MODES."""

    every = "every"
    full = "full"
    full_v2 = "full_v2"
    two = "two"


class Method(Enum):
    gradient = "gradient"
    reinforce = "reinforce"


@dataclass(frozen=True)
class Config:
    seed: int = option(11, "seeds weights, batches, gates and random networks")
    mechanism: bool = option(
        True,
        "False, a control, switches it off: architecture parameters are not trained and there is no latency term, products with "
        "inactive candidates are left out, two paths are not rescaled, inactive weights get zeros for gradients",
    )
    table_sees: bool = option(True, "the table of latencies tells candidates apart; False is a control")

    where: Where = option(Where.photos, "space and data of the searches")
    mode: Mode = option(Mode.full_v2, "how places run in an architecture step")
    method: Method = option(Method.gradient, "how architecture parameters are trained")
    form: Form = option(Form.add_linear, "how the expected cost enters the loss")
    latency_weight: float = option(0.5, "lambda of add_linear, exponent of mul_log (0.3 in the authors' code)")
    seeds: int = option(3, "repetitions of every search, from other weights and batches")
    warm_up: int = option(80, "weight steps with uniform gates before the search")
    steps: int = option(100, "weight steps of the search")
    alpha_every: int = option(2, "weight steps for one architecture step", unit="steps")
    alpha_rate: float = option(0.1, "Adam's learning rate of the architecture parameters")
    batch: int = option(32, "images of a step")
    retrain: int = option(100, "steps that a found network is trained for from new weights")

    scored: int = option(256, "images on which each network of the space of 1,296 is scored")

    table_batch: int = option(64, "images of a timed pass, on one thread")
    repeats: int = option(7, "timings of each, of which the median counts")
    networks: int = option(40, "random networks whose predicted latency is held against the measured one")

    def __post_init__(self) -> None:
        counts = ("seeds", "steps", "alpha_every", "batch", "retrain", "scored", "table_batch", "repeats")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        if self.warm_up < 0 or self.networks < 3:
            raise ValueError(f"warm_up is {self.warm_up} and networks {self.networks}; wanted at least 0 and 3")
        if self.alpha_rate < 0 or self.latency_weight < 0:
            raise ValueError(f"alpha_rate is {self.alpha_rate}, latency_weight {self.latency_weight}; wanted at least 0")


PRESETS = {
    "smoke": Config(
        where=Where.digits, seeds=1, warm_up=20, steps=20, retrain=20, scored=32, table_batch=64, repeats=3, networks=30,
    ),
    "laptop": Config(),
    # 40 epochs of warm-up, then 120 of 4,809 batches, without the 50,000 images of the architecture; retrained for 150 epochs of all.
    "paper": Config(
        where=Where.imagenet, seeds=1, warm_up=192_360, steps=577_080, alpha_every=5, alpha_rate=1e-3, batch=256, retrain=750_600,
        form=Form.mul_log, latency_weight=0.3, networks=1000,
    ),
}  # fmt: skip
