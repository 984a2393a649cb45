"""The numbers of a step that are the same for all elements."""

from __future__ import annotations

import math
from typing import NamedTuple


class Factors(NamedTuple):
    """p = shrink p - rate m / (sqrt(v) root + epsilon), m = m + new_mean (g - m), v = keep_square v + new_square g^2, and g
    takes coupled p more. In double precision: 1 - beta2 has few digits left if beta2 is rounded to float32 before."""

    shrink: float
    coupled: float
    new_mean: float
    keep_square: float
    new_square: float
    root: float
    rate: float
    epsilon: float

    @classmethod
    def of(
        cls, step: int, learning_rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, decoupled: bool
    ) -> Factors:
        return cls(
            shrink=1 - learning_rate * weight_decay if decoupled else 1.0,
            coupled=0.0 if decoupled else weight_decay,
            new_mean=1 - beta1,
            keep_square=beta2,
            new_square=1 - beta2,
            root=1 / math.sqrt(1 - beta2**step),
            rate=learning_rate / (1 - beta1**step),
            epsilon=epsilon,
        )
