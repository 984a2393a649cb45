"""Inputs for tests and benchmarks, and what a user would take instead.

Quotients keep away from the middle between two whole numbers, where the rounding of the dtype would decide; ties are tested
bit for bit elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

from .layout import limits, split


def _numbers(bits: int, *shape: int, zero: bool = False, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        outer, channels, inner = split(shape, options.get("axis"), options.get("group"))
        form = (
            (*shape[:-1], shape[-1] // options["group"]) if "group" in options else () if "axis" not in options else (channels,)
        )
        scale = rng.uniform(0.01, 2, channels).astype(np.float16).astype(np.float64)
        shift = rng.integers(-3, 4, channels).astype(np.int32) if zero else np.zeros(channels, np.int32)
        low, high = limits(bits, options.get("signed", True))
        # A third of the quotients lies outside of the limits.
        quotient = rng.integers(2 * low - high, 2 * high - low + 1, (outer, channels, inner)) * 0.5
        quotient = np.floor(quotient) - shift[:, None] + rng.uniform(-0.35, 0.35, quotient.shape)
        x = (quotient * scale[:, None]).reshape(shape)
        found = {"x": x, "scale": scale.reshape(form), "bits": bits, **options}
        return {**found, "zero_point": shift.reshape(form)} if zero else found

    return make


TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 5e-3}
CASES = {
    "fake_quantize": [
        Case("tensor", _numbers(4, 5, 7), TOLERANCE),
        Case("first axis", _numbers(8, 6, 33, axis=0)),
        Case("last axis, zero point", _numbers(4, 3, 5, 6, axis=-1, zero=True), TOLERANCE),
        Case("middle axis, unsigned", _numbers(3, 4, 5, 6, axis=1, signed=False)),
        Case("groups, zero point", _numbers(2, 3, 40, group=8, zero=True)),
        Case("one number", _numbers(8)),
        Case("empty", _numbers(4, 3, 0, axis=0)),
        Case("3072 x 768, first axis", _numbers(8, 3072, 768, axis=0), large=True),
        Case("12608 x 768, tensor", _numbers(8, 12608, 768), large=True),
    ]
}


def _peer(x: Any, scale: Any, *, bits: int, axis: int | None = None) -> Any:
    import torch

    low, high = limits(bits)
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
    return torch.fake_quantize_per_channel_affine(x, scale, zero, axis, low, high)


PEERS = {"fake_quantize": {"torch.fake_quantize": _peer}}
