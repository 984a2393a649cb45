"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case


def _chunk(size: int, scale: float = 1.0, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        gradient = rng.standard_normal(size) * scale
        arrays = {
            "parameter": rng.standard_normal(size),
            "gradient": gradient,
            "mean": gradient * 0.3 + rng.standard_normal(size) * 0.1 * scale,
            "square": rng.random(size) * scale**2,
        }
        return {**arrays, "step": 7, "learning_rate": 1e-2, **options}

    return make


def _first(size: int, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    """The first step: no state yet; every third gradient is zero."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        gradient = rng.standard_normal(size) * (np.arange(size) % 3 > 0)
        empty = {"mean": np.zeros(size), "square": np.zeros(size)}
        return {"parameter": rng.standard_normal(size), "gradient": gradient, **empty, "step": 1, "learning_rate": 0.1, **options}

    return make


EXACT = {"float64": 1e-9, "float32": 1e-5}
SINGLE = {"float32": 1e-5}

CASES = {
    "adam_chunk": [
        Case("empty", _chunk(0), SINGLE),
        Case("one", _chunk(1), SINGLE),
        Case("AdamW", _chunk(2300, weight_decay=0.1), EXACT),
        Case("Adam", _chunk(1025, weight_decay=0.1, decoupled=False), EXACT),
        Case("first step", _first(300), EXACT),
        Case("late step, other rates", _chunk(777, step=10**6, beta1=0.8, beta2=0.95, epsilon=1e-3), SINGLE),
        Case("no momentum", _chunk(100, step=1, beta1=0.0, beta2=0.0), SINGLE),
        Case("large gradients", _chunk(500, scale=1e15), SINGLE),
        Case("small gradients", _chunk(500, scale=1e-15, epsilon=1e-16), SINGLE),
        *(Case(f"n=2^{power}", _chunk(1 << power, weight_decay=0.1), SINGLE, large=True) for power in (18, 22, 24)),
    ]
}


def fused(parameter: Any, gradient: Any, mean: Any, square: Any, *, step: int, learning_rate: float, **options: Any) -> Any:
    """PyTorch's own fused AdamW, in place, without the bookkeeping of its class."""
    import torch
    from torch.optim.adamw import adamw

    count = torch.tensor(float(step - 1), device=parameter.device)
    adamw(
        [parameter], [gradient], [mean], [square], [], [count], fused=True, amsgrad=False, maximize=False, lr=learning_rate,
        beta1=options.get("beta1", 0.9), beta2=options.get("beta2", 0.999), eps=options.get("epsilon", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
    )  # fmt: skip
    return parameter, mean, square


def in_place(parameter: Any, gradient: Any, mean: Any, square: Any, **options: Any) -> Any:
    """This operation with its inputs as ``out``; the rows above make new arrays."""
    from kernels.adam_chunk import adam_chunk

    return adam_chunk(parameter, gradient, mean, square, **options, out=(parameter, mean, square))


PEERS = {"adam_chunk": {"ours in place": in_place, "AdamW fused, in place": fused}}
