"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

BITS = {"uint8": 0.0}


def _values(bits: int, *shape: int, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        return {"values": rng.integers(0, 2**bits, shape, dtype=np.uint8), "bits": bits, **options}

    return make


def _bytes(bits: int, *shape: int, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        *rows, count = shape
        packed = rng.integers(0, 256, (*rows, -(-count * bits // 8)), dtype=np.uint8)
        return {"packed": packed, "bits": bits, "count": count, **options}

    return make


def _cases(make: Callable[..., Any]) -> list[Case]:
    return [
        *(Case(f"{bits} bits", make(bits, 83), BITS) for bits in range(1, 9)),
        *(Case(f"{bits} bits, low first", make(bits, 83, high_first=False), BITS) for bits in (1, 3, 4)),
        Case("rows", make(5, 2, 3, 9), BITS),
        Case("empty", make(3, 0), BITS),
        Case("no rows", make(3, 0, 5), BITS),
        Case("one", make(2, 1), BITS),
        *(Case(f"{bits} bits x 4 Mi", make(bits, 1 << 22), BITS, large=True) for bits in (3, 4)),
    ]


CASES = {"pack": _cases(_values), "unpack": _cases(_bytes)}
