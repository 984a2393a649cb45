"""The step of MeZO-SGD, in numbers: framework-free."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """The numbers of MeZO-SGD: theta -= rate (g z + decay theta) with g = (L(theta + eps z) - L(theta - eps z)) / (2 eps)."""

    rate: float = 1e-6
    epsilon: float = 1e-3
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise ValueError(f"the learning rate is {self.rate}; wanted a number of at least 0")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon is {self.epsilon}; wanted a positive number: without a perturbation there is no gradient")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ValueError(f"the weight decay is {self.decay}; wanted a number of at least 0")

    def gradient(self, plus: float, minus: float) -> float:
        """g of two losses.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if not (math.isfinite(plus) and math.isfinite(minus)):
            raise FloatingPointError(
                f"the losses are {plus} and {minus}; the weights are as before the step, without its update. Lower the rate or epsilon"
            )
        return (plus - minus) / (2 * self.epsilon)
