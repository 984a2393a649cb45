"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"float32": 0.0}


def _weights(rng: np.random.Generator, count: int, deep: bool) -> np.ndarray:
    import ml_dtypes

    x = rng.standard_normal(count) * 0.02
    if deep:  # exponents so rare that their words have up to 20 bits
        rare = 2.0 ** -np.arange(18)
        x = np.exp2(rng.choice(18, count, p=rare / rare.sum()) - 9.0) * rng.choice([-1, 1], count)
    return x.astype(ml_dtypes.bfloat16).view(np.int16)


def _encoded(count: int, threads: int, deep: bool = False, one: bool = False) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        from papers.dfloat11.codec import encode

        bits = np.full(count, 0x3FC0, np.int16) if one else _weights(rng, count, deep)
        return {**encode(bits, threads=threads).arrays, "threads": threads}

    return make


CASES = {
    "decode": [
        Case("two blocks", _encoded(1000, 16), EXACT),
        Case("deep tables", _encoded(3000, 64, deep=True), EXACT),
        Case("one exponent", _encoded(300, 16, one=True), EXACT, backends=("torch", "triton")),
        Case("one weight", _encoded(1, 512), EXACT, backends=("torch", "triton")),
        Case("empty", _encoded(0, 16), EXACT, backends=("torch", "jax")),
        Case("large", _encoded(1 << 22, 512), EXACT, large=True),
    ]
}


def _copied(sign_mantissa: Any, **_: Any) -> Any:
    """The least that any lossless format must do: write the two bytes of each weight."""
    return sign_mantissa.astype(np.int16) if isinstance(sign_mantissa, np.ndarray) else sign_mantissa.short()


PEERS = {"decode": {"widen the raw bytes": _copied}}
