"""One plain training loop for each framework: :mod:`common.training.torch_loop` and :mod:`common.training.jax_loop`.

Both have ``train(model, loss, batch_at, optimizer, steps, ...)``, ``evaluate``, ``next_token_loss`` and ``adamw`` with the
same meaning, and make the same steps. Importing this package imports neither framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64


@runtime_checkable
class Store(Protocol):
    """Where a loop keeps its state, such as :class:`common.checkpoint.Checkpoint`."""

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None: ...

    def save(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class History:
    """What a training leaves behind.

    Attributes:
        losses: the loss of each step, before its update.
        seconds: wall time of all steps, those before a resumption included.
    """

    losses: Float64[np.ndarray, " steps"]
    seconds: float


def warmup_cosine(steps: int, warmup: int, final: float = 0.1) -> Callable[[int], float]:
    """Factor on the learning rate at each step: linear up to 1 in ``warmup`` steps, then half a cosine down to ``final``."""
    if not 0 <= warmup < steps:
        raise ValueError(f"a warm-up of {warmup} steps does not fit into {steps} steps")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(steps - 1 - warmup, 1)
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return factor


def bits_per_byte(nats: float) -> float:
    """A mean loss of a byte model in bits: nats / ln 2."""
    return nats / math.log(2)
