"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case
from kernels.gemm_w4a16 import pack


def _layer(k: int, n: int, *batch: int, group: int = 128, form: str = "x") -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        codes = rng.integers(-8, 8, (k, n)).astype(np.int8)
        # Float16 values, as the format stores them, whatever dtype they come in.
        scales = (0.02 * rng.uniform(0.5, 2, (1 if group == -1 else k // group, n))).astype(np.float16).astype(np.float64)
        if form == "codes":
            return {"codes": codes, "scales": scales, "group": group}
        packed, stored = pack(codes, scales, group=group)
        made = {"packed": packed, "scales": stored, "group": group}
        return made if form == "packed" else {"x": rng.standard_normal((*batch, k)), **made}

    return make


BITS = {"float16": 0.0}
BOTH = {"float64": 1e-9, "float32": 1e-5}
HALF: dict[str, Any] = {
    "tolerance": {"float16": 2e-3}, "why": "weights and results are rounded to 11 bits", "backends": ("torch", "triton"),
}  # fmt: skip


def _forms(form: str) -> list[Case]:
    return [
        Case("groups", _layer(256, 256, form=form), BITS),
        Case("columns", _layer(256, 512, group=-1, form=form), BITS),
        Case("one group", _layer(128, 256, form=form), BITS),
        Case("16 Mi weights", _layer(4096, 4096, form=form), {"float16": 0.0}, large=True),
    ]


CASES = {
    "pack": _forms("codes"),
    "unpack": _forms("packed"),
    "dequantize": _forms("packed"),
    "matmul": [
        Case("one row", _layer(384, 256, 1), BOTH),
        Case("batches", _layer(256, 512, 2, 5), BOTH),
        Case("columns", _layer(256, 256, 3, group=-1), BOTH),
        Case("tall", _layer(128, 256, 70), BOTH),
        Case("nothing to multiply", _layer(128, 256, 0), {"float32": 1e-5}),
        Case("half precision, few rows", _layer(384, 256, 17), **HALF),
        Case("half precision, columns", _layer(256, 256, 3, group=-1), **HALF),
        *(Case(f"m={m}", _layer(4096, 4096, m), {"float32": 1e-5}, large=True) for m in (1, 4, 16, 64)),
    ],
}


@functools.lru_cache(maxsize=8)
def weights(pointer: int, packed: Any, scales: Any, group: int, form: str) -> Any:
    """The same weights as a peer wants them, made once."""
    import torch

    from kernels.gemm_w4a16 import dequantize, unpack

    if form in ("float32", "bfloat16"):
        return dequantize(packed, scales.float(), group=group).to(getattr(torch, form))
    if form == "nf4":
        import bitsandbytes.functional as peer

        dense = weights(pointer, packed, scales, group, "float32")
        return peer.quantize_4bit(dense.T.contiguous(), quant_type="nf4", blocksize=64)
    codes, natural = unpack(packed, scales, group=group)
    whole = natural.float().expand(codes.shape[0] // 128, -1)
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).int().T.contiguous(), 1)
    return words, torch.stack([whole, torch.zeros_like(whole)], dim=-1)


def dense(x: Any, packed: Any, scales: Any, *, group: int, form: str = "float32") -> Any:
    w = weights(packed.data_ptr(), packed, scales, group, form)
    return x.to(w.dtype) @ w


def torch_int4(x: Any, packed: Any, scales: Any, *, group: int, form: str = "float32") -> Any:
    """torch's own product with 4-bit weights on the CPU, which has a fast path for bfloat16 alone."""
    import torch

    words, pairs = weights(packed.data_ptr(), packed, scales, group, "int4")
    kind = getattr(torch, form)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(kind), words, 128, pairs.to(kind))


def bitsandbytes(x: Any, packed: Any, scales: Any, *, group: int) -> Any:
    import bitsandbytes as peer

    indices, state = weights(packed.data_ptr(), packed, scales, group, "nf4")
    return peer.matmul_4bit(x, indices.t(), state)


PEERS = {
    "matmul": {
        "dense float32": dense,
        "dense bfloat16": functools.partial(dense, form="bfloat16"),
        "torch int4, float32": torch_int4,
        "torch int4, bfloat16": functools.partial(torch_int4, form="bfloat16"),
        "bitsandbytes nf4": bitsandbytes,
    }
}
