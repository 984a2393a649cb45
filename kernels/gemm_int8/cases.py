"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"int8": 0.0}
FLOAT = {"float32": 1e-5}
SHAPES = {"small": ((3, 5), 7, 4), "one": ((1,), 1, 1), "ragged": ((2, 67), 130, 65), "no rows": ((0,), 8, 3)}


def _pair(rng: np.random.Generator, rows: tuple[int, ...], inner: int, outer: int) -> dict[str, Any]:
    return {
        "x": rng.integers(-128, 128, (*rows, inner), dtype=np.int8),
        "weight": rng.integers(-128, 128, (outer, inner), dtype=np.int8),
    }


def _bias(rng: np.random.Generator, outer: int) -> np.ndarray:
    return rng.integers(-(2**20), 2**20, outer, dtype=np.int32)


def _factors(rng: np.random.Generator, channels: int, low: int, high: int) -> dict[str, Any]:
    sign = np.where(rng.random(channels) < 0.2, -1, 1)
    m = (rng.integers(2**30, 2**31, channels) * sign).astype(np.int32)
    return {"multiplier": m, "shift": rng.integers(low, high + 1, channels).astype(np.int32)}


def _plain(rows: tuple[int, ...], inner: int, outer: int, bias: bool = True) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {**_pair(rng, rows, inner, outer), "bias": _bias(rng, outer) if bias else None}


def _dyadic(
    rows: tuple[int, ...], inner: int, outer: int, bits: int = 8, channels: int = 0, bias: bool = True
) -> Callable[[np.random.Generator], dict[str, Any]]:
    # A result of inner products is about 2^12 sqrt(inner); shifts around it reach both ends of the clamp.
    return lambda rng: {
        **_plain(rows, inner, outer, bias)(rng), **_factors(rng, channels or outer, 34, 44 - bits // 2), "bits": bits,
    }  # fmt: skip


def _scaled(
    rows: tuple[int, ...], inner: int, outer: int, by_row: bool, by_channel: bool, bias: bool = True
) -> Callable[..., Any]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        return {
            **_pair(rng, rows, inner, outer),
            "x_scale": rng.uniform(0.01, 0.1, (*rows, 1) if by_row else (1,)),
            "weight_scale": rng.uniform(0.001, 0.01, (outer,) if by_channel else (1,)),
            "bias": rng.standard_normal(outer) if bias else None,
        }

    return make


def _codes(shape: tuple[int, ...], dtype: str, bits: int, low: int = 0, high: int = 62, channels: int = 0) -> Callable[..., Any]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
        if x.size:
            x.flat[0], x.flat[-1] = info.min, info.max
        return {"x": x, **_factors(rng, channels or shape[-1], low, high), "bits": bits}

    return make


CASES = {
    "matmul_int8": [
        *(Case(name, _plain(*shape), EXACT) for name, shape in SHAPES.items()),
        Case("no bias", _plain((4,), 9, 6, bias=False), EXACT),
        Case("197 x 384 x 1536", _plain((197,), 384, 1536, bias=False), EXACT, large=True),
    ],
    "matmul_int8_dyadic": [
        *(Case(name, _dyadic(*shape), EXACT) for name, shape in SHAPES.items()),
        Case("16 bits", _dyadic((2, 5), 64, 33, bits=16), EXACT),
        Case("4 bits, one factor, no bias", _dyadic((9,), 12, 5, bits=4, channels=1, bias=False), EXACT),
        Case("197 x 384 x 1536", _dyadic((197,), 384, 1536), EXACT, large=True),
    ],
    "matmul_int8_scaled": [
        Case("tensor", _scaled((3, 5), 7, 4, False, False), FLOAT),
        Case("rows and channels", _scaled((2, 67), 130, 65, True, True), FLOAT),
        Case("channels, no bias", _scaled((4,), 9, 6, False, True, bias=False), FLOAT),
        Case("no rows", _scaled((0,), 8, 3, True, True), FLOAT),
        Case("197 x 384 x 1536", _scaled((197,), 384, 1536, True, True), FLOAT, large=True),
    ],
    "requantise": [
        *(Case(f"{dtype} to {bits} bits", _codes((3, 37), dtype, bits), EXACT)
          for dtype, bits in (("int32", 8), ("int32", 16), ("int32", 32), ("int16", 16), ("int8", 4))),
        Case("one factor", _codes((5, 7), "int32", 16, 40, 50, channels=1), EXACT),
        Case("empty", _codes((0, 3), "int32", 8), EXACT),
        Case("197 x 1536", _codes((197, 1536), "int32", 8, 50, 56), EXACT, large=True),
    ],
}  # fmt: skip


def _torch_int_mm(*, x: Any, weight: Any, bias: Any = None, **_: Any) -> Any:
    import torch

    return torch._int_mm(x, weight.t())


def _torch_float32(*, x: Any, weight: Any, **_: Any) -> Any:
    import torch

    return torch.nn.functional.linear(x.float(), weight.float())


PEERS = {
    "matmul_int8": {"torch._int_mm": _torch_int_mm, "float32 linear": _torch_float32},
    "matmul_int8_dyadic": {"torch._int_mm alone": _torch_int_mm, "float32 linear": _torch_float32},
}
