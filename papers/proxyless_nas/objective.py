"""What a search descends, and the constants of its optimizers; the same text for both frameworks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.9, 4e-5, 0.1
"""Of SGD with Nesterov momentum on the weights, and the share of the label that is spread over all classes."""
WARM_RATE, RATE = 0.05, 0.025
"""Learning rates at which the warm-up and the search begin; both fall to 0 along a cosine."""
BETAS = 0.0, 0.999
"""Of Adam on the architecture parameters."""
SPREAD = 1e-3
"""Deviation of the normal distribution that architecture parameters begin with. All from the authors' code."""


class Form(Enum):
    """How the expected cost E enters, ref being the reference."""

    add_linear = "add_linear"  # loss + weight (E - ref) / ref
    mul_log = "mul_log"  # 0.2 loss (log E / log ref)^0.3, the authors' default; its weight is the exponent


@dataclass(frozen=True)
class Objective:
    """The loss of an architecture step (section 3.2.2 and the authors' code).

    Attributes:
        reference: ref, in the unit of the cost, above 1.
        weight: lambda of add_linear, exponent of mul_log; 0 leaves cost out.
    """

    reference: float
    weight: float
    form: Form = Form.add_linear

    def __post_init__(self) -> None:
        if not self.reference > 1 or self.weight < 0:
            raise ValueError(f"reference is {self.reference} and weight {self.weight}; wanted more than 1, and at least 0")

    def __call__(self, loss: Any, cost: Any, log: Callable[[Any], Any] = math.log) -> Any:
        if self.form is Form.add_linear:
            return loss + self.weight * (cost - self.reference) / self.reference
        return _SCALE * loss * (log(cost) / math.log(self.reference)) ** self.weight


_SCALE = 0.2
