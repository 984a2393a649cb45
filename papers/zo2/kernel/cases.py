"""Inputs of the noise: sizes that fill no block, slices that begin inside one, seeds and counters of all bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

TOLERANCE = {"float64": 1e-13, "float32": 2e-6}
HALF = {"float16": 1e-3, "bfloat16": 8e-3}


def _noise(shape: tuple[int, ...], **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"like": rng.standard_normal(shape), "seed": 2024, **options}


def _weights(shape: tuple[int, ...], **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"theta": rng.standard_normal(shape), "scale": 1e-3, "seed": 2024, **options}


def _counters(n: int) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        counter = rng.integers(0, 2**32, (n, 4), dtype=np.uint32)
        if n:
            counter[0], counter[-1] = 0, 2**32 - 1
        return {"counter": counter, "key": rng.integers(0, 2**32, 2, dtype=np.uint32)}

    return make


CASES = {
    "philox": [
        Case("many", _counters(300), {"uint32": 0.0}),
        Case("one", _counters(1), {"uint32": 0.0}),
        Case("none", _counters(0), {"uint32": 0.0}),
        Case("large", _counters(2**18), {"uint32": 0.0}, large=True),
    ],
    "gaussian": [
        Case("matrix", _noise((7, 300), parameter=3), TOLERANCE),
        Case("large", _noise((1024, 1024)), TOLERANCE, large=True),
    ],
    "perturb": [
        Case("matrix", _weights((7, 300), parameter=3), TOLERANCE | HALF),
        Case("slice", _weights((1027,), parameter=2**32 - 1, offset=1021, seed=2**64 - 5), TOLERANCE),
        Case("update", _weights((5, 5), keep=0.9, scale=2.0), TOLERANCE),
        Case("far", _weights((9,), offset=2**34 - 9), TOLERANCE),
        Case("single", _weights((1,), offset=3), TOLERANCE),
        Case("empty", _weights((0, 3)), TOLERANCE),
        Case("large", _weights((1024, 1024)), TOLERANCE, large=True),
    ],
}  # fmt: skip


def _torch_randn(theta: Any, scale: float, seed: int, **_: Any) -> Any:
    """What MeZO does: draw z whole, then add it."""
    import torch

    return theta + scale * torch.randn(theta.shape, dtype=theta.dtype, generator=torch.Generator().manual_seed(seed % 2**63))


PEERS = {"perturb": {"torch.randn and add": _torch_randn}}
