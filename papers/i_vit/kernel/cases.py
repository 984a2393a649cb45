"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"int8": 0.0}


def _codes(shape: tuple[int, ...], dtype: str = "int8", magnitude: int = 0, **options: Any) -> Callable[..., dict[str, Any]]:
    """Codes over the whole range of the dtype, or up to a magnitude; the first row holds both ends, the last is constant."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        low, high = (-magnitude, magnitude) if magnitude else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        x = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
        if x.size:
            flat = x.reshape(-1, shape[-1])
            flat[-1] = low
            flat[0, 0], flat[0, -1] = low, high
        return {"x": x, **options}

    return make


CASES = {
    "shiftmax": [
        Case("one", _codes((1, 1), unit=20), EXACT),
        Case("int8, 16 bits", _codes((2, 3, 17), unit=16), EXACT),
        Case("int8, 8 bits", _codes((4, 65), unit=40, n=12, bits=8), EXACT),
        Case("int8, 4 bits, unit 1", _codes((3, 9), unit=1, n=20, bits=4), EXACT),
        Case("int16", _codes((3, 33), "int16", unit=900, n=12), EXACT),
        Case("int32", _codes((2, 5), "int32", 2**28, unit=5000, n=10), EXACT),
        Case("no rows", _codes((0, 4), unit=16), EXACT),
        Case("6 x 197 x 197", _codes((6, 197, 197), unit=16), EXACT, large=True),
    ],
    "shift_gelu": [
        Case("one", _codes((1, 1), unit=12), EXACT),
        Case("N 23", _codes((2, 3, 17), unit=13), EXACT),
        Case("N 16, shifts", _codes((4, 33), unit=22, n=16, shifts=True), EXACT),
        Case("wide", _codes((3, 65), unit=7, n=40, wide=True), EXACT),
        Case("wide, shifts, fine", _codes((2, 9), "int16", unit=9000, n=40, wide=True, shifts=True), EXACT),
        Case("int16", _codes((3, 20), "int16", unit=900, n=18), EXACT),
        Case("negative row", _codes((2, 6), magnitude=90, unit=13, n=20), EXACT),
        Case("no rows", _codes((0, 4), unit=16), EXACT),
        Case("197 x 1536", _codes((197, 1536), unit=13, n=18), EXACT, large=True),
    ],
    "i_layernorm": [
        Case("one", _codes((2, 1)), EXACT),
        Case("int8", _codes((2, 3, 17)), EXACT),
        Case("int16", _codes((3, 64), "int16"), EXACT),
        Case("int32", _codes((3, 48), "int32", 2**23), EXACT),
        Case("small, 3 steps", _codes((4, 9), magnitude=2, steps=3), EXACT),
        Case("no rows", _codes((0, 4)), EXACT),
        Case("197 x 384", _codes((197, 384), "int16"), EXACT, large=True),
    ],
}


def _softmax(*, x: Any, **_: Any) -> Any:
    import torch

    return torch.softmax(x.float(), -1)


def _gelu(*, x: Any, **_: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(x.float())


def _layer_norm(*, x: Any, **_: Any) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x.float(), x.shape[-1:])


PEERS = {
    "shiftmax": {"torch softmax, float32": _softmax},
    "shift_gelu": {"torch gelu, float32": _gelu},
    "i_layernorm": {"torch layer_norm, float32": _layer_norm},
}
