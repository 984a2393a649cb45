"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case
from kernels.bitpack import pack
from kernels.block_quant import code_book, quantize_blockwise


def _layer(
    n: int, k: int, *batch: int, block: int = 64, name: str = "nf4", with_x: bool = True
) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        w = rng.standard_normal((n, k)).astype(np.float32) / np.float32(k**0.5)
        code = np.resize(code_book(name), 16)
        indices, absmax = quantize_blockwise(w, code_book(name), block=block)
        made: dict[str, Any] = {"x": rng.standard_normal((*batch, k))} if with_x else {}
        made |= {"packed": pack(indices, bits=4).reshape(n, k // 2), "absmax": absmax, "code": code, "block": block}
        return made

    return make


SINGLE = {"float32": 1e-5}
BITS = {"float32": 0.0}

CASES = {
    "matmul_nf4": [
        Case("whole blocks", _layer(40, 128, 2, 9), {"float64": 1e-9, "float32": 1e-5}),
        Case("blocks across rows", _layer(24, 86, 5, name="fp4"), SINGLE),
        Case("one row", _layer(1, 64, 1, name="int4"), SINGLE),
        Case("several tiles", _layer(70, 256, 33, block=32), SINGLE),
        Case("nothing to multiply", _layer(8, 64, 0), SINGLE),
        Case(
            "half precision",
            _layer(32, 128, 17),
            {"float16": 2e-3},
            why="weights and results are rounded to 11 bits",
            backends=("torch", "triton"),
        ),
        *(Case(f"m={m}", _layer(2048, 2048, m), SINGLE, large=True) for m in (1, 16, 256)),
    ],
    "dequantize_nf4": [
        Case("whole blocks", _layer(6, 128, with_x=False), BITS),
        Case("ragged", _layer(7, 46, with_x=False, block=32), BITS),
        Case("4 Mi weights", _layer(2048, 2048, with_x=False), BITS, large=True),
    ],
}


@functools.lru_cache(maxsize=2)
def _state(pointer: int, packed: Any, absmax: Any, block: int) -> Any:
    """The peer's own description of the same weights."""
    import bitsandbytes.functional as peer
    import torch

    n, half = packed.shape
    code = peer.get_4bit_type("nf4", device="cpu")
    return peer.QuantState(absmax, torch.Size((n, 2 * half)), code, block, "nf4", torch.float32)


def _peer_matmul(x: Any, packed: Any, absmax: Any, code: Any, *, block: int) -> Any:
    import bitsandbytes as peer

    return peer.matmul_4bit(x, packed.reshape(-1, 1).t(), _state(packed.data_ptr(), packed, absmax, block))


def _peer_dequantize(packed: Any, absmax: Any, code: Any, *, block: int) -> Any:
    import bitsandbytes.functional as peer

    return peer.dequantize_4bit(packed.reshape(-1, 1), _state(packed.data_ptr(), packed, absmax, block))


@functools.lru_cache(maxsize=2)
def _dense(pointer: int, packed: Any, absmax: Any, code: Any, block: int) -> Any:
    from papers.qlora.kernel import dequantize_nf4

    return dequantize_nf4(packed, absmax, code, block=block)


def _dense_matmul(x: Any, packed: Any, absmax: Any, code: Any, *, block: int) -> Any:
    return x @ _dense(packed.data_ptr(), packed, absmax, code, block).T


PEERS = {
    "matmul_nf4": {"bitsandbytes": _peer_matmul, "dense float32": _dense_matmul},
    "dequantize_nf4": {"bitsandbytes": _peer_dequantize},
}
