"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case
from kernels import gemm_w4a16, sparse24
from papers.marlin.kernel import sparse_pack


def _layer(k: int, n: int, *batch: int, group: int = 128, form: str = "x") -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        codes = rng.integers(-8, 8, (k, n)).astype(np.int8)
        mask = sparse24.mask(rng.standard_normal((n, k)).astype(np.float32)).T.copy()
        scales = (0.02 * rng.uniform(0.5, 2, (1 if group == -1 else k // group, n))).astype(np.float16).astype(np.float64)
        if form == "codes":
            return {"codes": codes, "scales": scales, "mask": mask, "group": group}
        values, meta, stored = sparse_pack(codes, scales, mask, group=group)
        made = {"values": values, "meta": meta, "scales": stored, "group": group}
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
        Case("columns", _layer(128, 512, group=-1, form=form), BITS),
        Case("4 Mi weights", _layer(2048, 2048, form=form), BITS, large=True),
    ]


CASES = {
    "sparse_pack": _forms("codes"),
    "sparse_unpack": _forms("packed"),
    "sparse_matmul": [
        Case("batches", _layer(384, 256, 2, 3), BOTH),
        Case("columns", _layer(256, 512, 3, group=-1), BOTH),
        Case("nothing to multiply", _layer(128, 256, 0), {"float32": 1e-5}),
        Case("half precision", _layer(256, 256, 17), **HALF),
        *(Case(f"m={m}", _layer(4096, 4096, m), {"float32": 1e-5}, large=True) for m in (1, 16, 64)),
    ],
}


@functools.lru_cache(maxsize=4)
def _weights(pointer: int, values: Any, meta: Any, scales: Any, group: int, form: str) -> Any:
    from papers.marlin.kernel import sparse_unpack

    codes, natural, _ = sparse_unpack(values, meta, scales, group=group)
    packed = gemm_w4a16.pack(codes, natural, group=group)
    return packed if form == "int4" else gemm_w4a16.dequantize(*packed, group=group).float()


def _dense(x: Any, values: Any, meta: Any, scales: Any, *, group: int) -> Any:
    return x @ _weights(values.data_ptr(), values, meta, scales, group, "float32")


def _int4(x: Any, values: Any, meta: Any, scales: Any, *, group: int) -> Any:
    return gemm_w4a16.matmul(x, *_weights(values.data_ptr(), values, meta, scales, group, "int4"), group=group)


PEERS = {"sparse_matmul": {"dense float32": _dense, "4 bits, zeros stored": _int4}}
