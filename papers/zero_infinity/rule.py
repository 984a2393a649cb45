"""The optimizer's settings, and its step on a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels.adam_chunk import adam_chunk


@dataclass(frozen=True)
class Adam:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, algorithm 2)."""

    rate: float | int = 1e-3
    first: float | int = 0.9
    second: float | int = 0.999
    epsilon: float | int = 1e-8
    decay: float | int = 0.0

    def update(self, parameter: Any, gradient: Any, mean: Any, square: Any, step: int) -> None:
        """One step in place, on flat torch tensors of one length; steps count from 1."""
        adam_chunk(
            parameter, gradient, mean, square, step=step, learning_rate=self.rate, beta1=self.first, beta2=self.second,
            epsilon=self.epsilon, weight_decay=self.decay, out=(parameter, mean, square),
        )  # fmt: skip
