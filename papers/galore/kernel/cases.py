"""Inputs for tests and benchmarks, and what a user would take instead.

Where a moment lies between two codes backends may round it to either, so the inputs of the tests keep clear of borders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

from . import BLOCK
from .tables import STEPS, tables


def _state(
    count: int, step: int, *, block: int = BLOCK, grid: bool = False, zero_block: bool = False, spread: float = 1.0
) -> Callable[[np.random.Generator], dict[str, Any]]:
    """A state in the middle of a training, and a gradient whose magnitudes spread over ``spread`` decades."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        blocks = -(-count // block)
        arrays = {
            "mean": rng.integers(0, 256, count).astype(np.uint8) if step > 1 else np.zeros(count, np.uint8),
            "mean_scale": 10.0 ** rng.uniform(-4, 0, blocks) if step > 1 else np.zeros(blocks),
            "square": rng.integers(0, 256, count).astype(np.uint8) if step > 1 else np.zeros(count, np.uint8),
            "square_scale": 10.0 ** rng.uniform(-6, -2, blocks) if step > 1 else np.zeros(blocks),
        }

        def draw() -> np.ndarray:
            return rng.standard_normal(count) * 10.0 ** rng.uniform(-spread, 0, count)

        gradient = draw()
        if zero_block:
            gradient[:block] = 0
        for _ in range(20):
            near = _near_a_border(gradient, arrays, block, grid) & (gradient != 0)
            gradient = np.where(near, draw(), gradient)
            if not near.any():
                break
        return {"gradient": gradient, **arrays, "step": step, "block": block, "grid": grid}

    return make


def _near_a_border(gradient: np.ndarray, arrays: dict[str, Any], block: int, grid: bool) -> np.ndarray:
    """Elements whose code a rounding error could change."""
    signed, unsigned, m_edges, v_edges = (each.astype(np.float64) for each in tables())
    at = np.arange(gradient.size) // block
    m = 0.9 * signed[arrays["mean"]] * arrays["mean_scale"][at] + 0.1 * gradient
    v = 0.999 * unsigned[arrays["square"]] * arrays["square_scale"][at] + 0.001 * gradient**2
    near = np.zeros(gradient.size, bool)
    for x, edges in ((m, m_edges), (v, v_edges)):
        largest = np.zeros(at.max(initial=-1) + 1)
        np.maximum.at(largest, at, np.abs(x))
        quotient = x / np.maximum(largest, 1e-300)[at]
        if grid:
            # A step of the grid ends half-way between two of its points.
            place = (quotient + 1) / 2 * STEPS + 0.5
            near |= np.abs(place - np.round(place)) < 0.05
        else:
            upper = np.clip(np.searchsorted(edges, quotient), 0, edges.size - 1)
            for edge in (edges[upper], edges[np.maximum(upper - 1, 0)]):
                near |= np.abs(quotient - edge) < 1e-4 * np.abs(edge)
    return near


SINGLE = {"float32": 1e-5}

CASES = {
    "adam8bit": [
        Case("empty", _state(0, 3), SINGLE),
        Case("first step, a block of zeros, ragged", _state(2 * BLOCK + 40, 1, zero_block=True, spread=3.0), SINGLE),
        Case("later, one over, large blocks", _state(2048 + 1, 1000, block=2048, spread=2.0), SINGLE),
        Case("grid, ragged", _state(2 * BLOCK + 40, 5, grid=True), SINGLE),
        Case("256 x 4096", _state(256 * 4096, 11), SINGLE, large=True),
    ]
}


def bitsandbytes_step(gradient: Any, mean: Any, mean_scale: Any, square: Any, square_scale: Any, *, step: int, **_: Any) -> Any:
    """bitsandbytes' own 8-bit update of copies of these moments, with a weight that it moves by a learning rate of 1."""
    import bitsandbytes.functional
    import torch

    update: Any = bitsandbytes.functional.optimizer_update_8bit_blockwise
    weight = torch.zeros_like(gradient)
    moments = [each.clone() for each in (mean, mean_scale, square, square_scale)]
    m, m_scale, v, v_scale = moments
    books = [torch.tensor(each) for each in tables()[:2]]
    update("adam", gradient, weight, m, v, 0.9, 0.999, 0.0, 0.0, 1e-8, step, 1.0, *books, m_scale, v_scale)
    return weight, m, m_scale, v, v_scale


def adam_float32(gradient: Any, mean: Any, mean_scale: Any, square: Any, square_scale: Any, *, step: int, **_: Any) -> Any:
    """torch's fused Adam with moments in float32, four times the memory."""
    import torch

    weight, m, v = torch.zeros_like(gradient), torch.zeros_like(gradient), torch.zeros_like(gradient)
    torch._fused_adam_(
        [weight], [gradient], [m], [v], [], [torch.tensor(float(step))],
        lr=1.0, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip
    return weight, m, v


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


PEERS: dict[str, dict[str, Callable[..., Any]]] = {
    "adam8bit": {
        **({"bitsandbytes": bitsandbytes_step} if _installed("bitsandbytes") else {}),
        "torch Adam, float32": adam_float32,
    }
}
