"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

from .codes import code_book

BITS = {"float32": 0.0}


def _numbers(name: str, block: int, *shape: int, scale: float = 1.0) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        x = rng.standard_normal(shape).astype(np.float32) * scale
        if x.size > 2 * block:
            x.reshape(-1)[block : 2 * block] = 0
        return {"x": x, "code": code_book(name), "block": block}

    return make


def _middles(name: str, block: int) -> Callable[[np.random.Generator], dict[str, Any]]:
    """Quotients on the middle between two codes, and its neighbours: they decide who is nearest."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        code = code_book(name)
        middle = (code[1:] + code[:-1]) / np.float32(2)
        near = np.concatenate([np.nextafter(middle, np.float32(-2)), middle, np.nextafter(middle, np.float32(2))])
        near = np.where(np.abs(near) < 2.0**-120, np.float32(0), near)
        rows = np.zeros((-(-near.size // (block - 1)), block), np.float32)
        rows[:, 1:] = np.resize(near, (rows.shape[0], block - 1))
        rows[:, 0] = 1
        return {"x": rows * np.float32(0.25), "code": code, "block": block}

    return make


def _codes(name: str, block: int, count: int) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        code = code_book(name)
        indices = rng.integers(0, code.size, count, dtype=np.uint8)
        absmax = rng.standard_normal(-(-count // block)).astype(np.float32) ** 2
        return {"indices": indices, "absmax": absmax, "code": code, "block": block}

    return make


LARGE = 1 << 22

CASES = {
    "quantize_blockwise": [
        Case("nf4", _numbers("nf4", 64, 8, 128), BITS),
        Case("ragged fp4", _numbers("fp4", 64, 5, 41, scale=1e-3), BITS),
        Case("int4 of large numbers", _numbers("int4", 32, 300, scale=1e30), BITS),
        Case("middles of nf4", _middles("nf4", 64), BITS),
        Case("signed", _numbers("dynamic_signed", 256, 1100, scale=1e-20), BITS),
        Case("middles of unsigned", _middles("dynamic_unsigned", 256), BITS),
        Case("int8, one ragged block", _numbers("int8", 4096, 70), BITS),
        Case("empty", _numbers("nf4", 64, 0), BITS),
        Case("nf4 x 4 Mi", _numbers("nf4", 64, LARGE), BITS, large=True),
        Case("dynamic x 4 Mi", _numbers("dynamic_signed", 256, LARGE), BITS, large=True),
    ],
    "dequantize_blockwise": [
        Case("nf4", _codes("nf4", 64, 1024), BITS),
        Case("ragged int8", _codes("int8", 32, 333), BITS),
        Case("unsigned", _codes("dynamic_unsigned", 256, 1100), BITS),
        Case("one", _codes("fp4", 4096, 1), BITS),
        Case("empty", _codes("nf4", 64, 0), BITS),
        Case("nf4 x 4 Mi", _codes("nf4", 64, LARGE), BITS, large=True),
        Case("dynamic x 4 Mi", _codes("dynamic_signed", 256, LARGE), BITS, large=True),
    ],
}


def _peer_quantize(x: Any, code: Any, *, block: int) -> Any:
    import bitsandbytes.functional as peer

    return (peer.quantize_4bit(x, blocksize=block, quant_type="nf4") if code.numel() == 16 else _native(x, code, block))[0]


def _native(x: Any, code: Any, block: int) -> Any:
    import bitsandbytes  # noqa: F401
    import torch

    return torch.ops.bitsandbytes.quantize_blockwise(x, code, block)


def _peer_dequantize(indices: Any, absmax: Any, code: Any, *, block: int) -> Any:
    import bitsandbytes  # noqa: F401
    import torch

    return torch.ops.bitsandbytes.dequantize_blockwise(indices, absmax, code, block, torch.float32)


PEERS = {"quantize_blockwise": {"bitsandbytes": _peer_quantize}, "dequantize_blockwise": {"bitsandbytes": _peer_dequantize}}
