"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

from . import reference

BITS = {"float32": 0.0}
EVERY = {"float64": 0.0, "float32": 0.0, "float16": 0.0}
Make = Callable[[np.random.Generator], dict[str, Any]]


def _weights(rows: int, k: int, paired: bool = False, kind: str = "normal") -> Make:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        return {"weights": _drawn(rng, rows, k, kind), "paired": paired}

    return make


def _masked(rows: int, k: int, paired: bool = False, kind: str = "normal") -> Make:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        weights = _drawn(rng, rows, k, kind)
        return {"weights": weights, "mask": reference.mask(weights, paired=paired), "paired": paired}

    return make


def _packed(rows: int, k: int, paired: bool = False, kind: str = "normal") -> Make:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        values, meta = reference.pack(**_masked(rows, k, paired, kind)(rng))
        return {"values": values, "meta": meta, "k": k, "paired": paired}

    return make


def _product(batch: tuple[int, ...], rows: int, k: int, paired: bool = False, kind: str = "normal", scaled: bool = True) -> Make:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        found = _packed(rows, k, paired, "int8" if kind == "int4" else kind)(rng)
        del found["k"]
        if kind == "int4":
            found["values"] = rng.integers(0, 256, (rows, k // 4), dtype=np.uint8)
        scale = rng.uniform(0.5, 2, rows) if scaled else None
        return {"x": rng.standard_normal((*batch, k)), **found, "scale": scale}

    return make


def _drawn(rng: np.random.Generator, rows: int, k: int, kind: str) -> np.ndarray:
    if kind == "int8":
        return rng.integers(-128, 128, (rows, k)).astype(np.int8)
    if kind == "few":  # many ties, zeros of both signs, far from 1
        return rng.integers(-2, 3, (rows, k)) * rng.choice([1.0, -1.0], (rows, k)) * 2.0**-12
    return rng.standard_normal((rows, k))


def _both(make: Callable[..., Make]) -> list[Case]:
    return [
        Case("rows", make(7, 48), EVERY),
        Case("pairs", make(5, 64, True), EVERY),
        Case("last word not full", make(3, 20), BITS),
        Case("pairs, last word not full", make(3, 40, True), BITS),
        Case("ties", make(9, 128, kind="few"), BITS),
        Case("ties of pairs", make(9, 128, True, kind="few"), BITS),
        Case("int8", make(4, 32, kind="int8"), BITS),
        Case("int8 pairs", make(4, 32, True, kind="int8"), BITS),
        Case("no columns", make(3, 0), BITS),
        Case("no rows", make(0, 16), BITS),
        Case("3072 x 768", make(3072, 768), BITS, large=True),
        Case("3072 x 768, pairs", make(3072, 768, True), BITS, large=True),
    ]


HALF = {"float32": 1e-5, "float16": 2e-3}
CASES = {
    "mask": _both(_weights),
    "pack": _both(_masked),
    "unpack": _both(_packed),
    "matmul": [
        Case("one row", _product((), 24, 64)),
        Case("int8", _product((2, 3), 33, 96, kind="int8"), {"float64": 1e-9, **HALF}),
        Case("pairs", _product((9,), 17, 80, True, scaled=False)),
        Case("int4 pairs", _product((2,), 40, 64, True, kind="int4"), {"float64": 1e-9, **HALF}),
        Case("int4", _product((5,), 16, 20, kind="int4")),
        Case("a few rows of int8 pairs", _product((3,), 10, 40, True, kind="int8"), {"float32": 1e-5}),
        Case("no columns", _product((2,), 3, 0), {"float32": 1e-5}),
        Case("no rows of x", _product((0,), 8, 16), {"float32": 1e-5}),
        Case("1 x 768 to 3072, int8", _product((1,), 3072, 768, kind="int8"), {"float32": 1e-5}, large=True),
        Case("197 x 768 to 3072, int8", _product((197,), 3072, 768, kind="int8"), {"float32": 1e-5}, large=True),
    ],
}


def _by_topk(weights: Any, *, paired: bool) -> Any:
    """What one writes with torch.topk."""
    import torch

    unit = 2 if paired else 1
    groups = weights.abs().view(len(weights), -1, 4, unit).sum(-1)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2, dim=2).indices, True)
    return kept.repeat_interleave(unit, -1).view_as(weights)


def _dense(x: Any, values: Any, meta: Any, scale: Any, *, paired: bool) -> Any:
    """The product with as many dense weights, held in the dtype of x from the first call on."""
    import torch

    key = values.shape[0], x.shape[-1], x.dtype
    if key not in _KEPT:
        _KEPT[key] = torch.zeros(key[:2], dtype=x.dtype)
    return torch.nn.functional.linear(x, _KEPT[key])


_KEPT: dict[Any, Any] = {}
PEERS = {"mask": {"torch.topk": _by_topk}, "matmul": {"dense": _dense}}
