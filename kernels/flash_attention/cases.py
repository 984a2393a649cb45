"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case


def _sequence(
    seq: int, keys: int, dim: int = 16, value_dim: int = 16, heads: tuple[int, int] = (2, 1), batch: int = 1, **options: Any
) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        shapes = {
            "q": (batch, heads[0], seq, dim),
            "k": (batch, heads[1], keys, dim),
            "v": (batch, heads[1], keys, value_dim),
        }
        return {**{name: rng.standard_normal(shape) for name, shape in shapes.items()}, **options}

    return make


def _steep(rng: np.random.Generator) -> dict[str, Any]:
    """Scores of up to 10^4 that every dtype holds exactly: only an exponential of differences survives them."""
    q, k = (rng.integers(-24, 25, (1, 2, 40, 16)).astype(float) for _ in range(2))
    return {"q": q, "k": k, "v": rng.standard_normal((1, 2, 40, 16)), "causal": True, "scale": 1.0, "block": (16, 16)}


EXACT = {"float64": 1e-9, "float32": 1e-5}
SINGLE = {"float32": 1e-5}
SMALL: dict[str, Any] = {"block": (16, 16)}

CASES = {
    "flash_attention": [
        Case("no queries", _sequence(0, 5), SINGLE),
        Case("no keys", _sequence(5, 0, causal=True), SINGLE),
        Case("one", _sequence(1, 1, heads=(1, 1)), SINGLE),
        Case("ragged", _sequence(20, 35, 20, 24, heads=(4, 2), batch=2, **SMALL), EXACT),
        Case("causal", _sequence(50, 50, 32, 16, causal=True, **SMALL), SINGLE, backends=("torch", "triton")),
        Case("decode", _sequence(3, 70, heads=(6, 2), causal=True, query_start=67, scale=0.5), SINGLE),
        Case("nothing to see", _sequence(40, 30, causal=True, query_start=3, key_start=20, **SMALL), SINGLE),
        Case("sinks", _sequence(60, 60, causal=True, window=11, sinks=3, **SMALL), EXACT),
        Case("sinks cut", _sequence(20, 60, causal=True, window=7, sinks=20, query_start=43, key_start=2, **SMALL), SINGLE),
        Case("default block", _sequence(130, 150, 64, 64, heads=(1, 1)), SINGLE, backends=("torch", "triton", "jax")),
        Case("steep", _steep, SINGLE),
        Case(
            "half precision",
            _sequence(40, 70, 32, 16, causal=True, query_start=30, **SMALL),
            {"float16": 2e-3},
            why="outputs and gradients, in Triton also the weights, are rounded to 11 bits",
            backends=("torch", "triton"),
        ),
        *(
            Case(f"causal n={n}", _sequence(n, n, 64, 64, heads=(heads, heads), causal=True), SINGLE, large=True)
            for n, heads in ((1024, 8), (4096, 4), (16384, 1))
        ),
        Case(
            "8 on 2 heads n=2048",
            _sequence(2048, 2048, 64, 64, heads=(8, 2)),
            SINGLE,
            large=True,
        ),
        Case(
            "window 512 n=4096",
            _sequence(4096, 4096, 64, 64, heads=(4, 4), causal=True, window=512, sinks=4),
            SINGLE,
            large=True,
        ),
    ]
}


def sdpa(q: Any, k: Any, v: Any, *, causal: bool = False, window: int | None = None, sinks: int = 0, **_: Any) -> Any:
    """PyTorch's own fused attention, which gives no lse and takes a window as a stored mask."""
    import torch

    attention = functools.partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=q.shape[1] != k.shape[1])
    if window is None:
        return attention(q, k, v, is_causal=causal)
    age = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    seen = (age >= 0) & ((age < window) | (torch.arange(k.shape[2]) < sinks))
    return attention(q, k, v, attn_mask=seen.to(q.device))


def jax_attention(q: Any, k: Any, v: Any, *, causal: bool = False, window: int | None = None, **_: Any) -> Any:
    """jax.nn.dot_product_attention on the memory of these tensors; it stores all scores and knows no sinks."""
    import jax
    import torch

    arrays = (jax.dlpack.from_dlpack(x.detach()) for x in (q, k, v))
    return torch.from_dlpack(jax.block_until_ready(_compiled(causal, window)(*arrays)))


@functools.cache
def _compiled(causal: bool, window: int | None) -> Any:
    import jax

    sides = None if window is None else (window - 1, 0)

    def attention(*arrays: Any) -> Any:
        q, k, v = (x.swapaxes(1, 2) for x in arrays)
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, local_window_size=sides).swapaxes(1, 2)

    return jax.jit(attention)


PEERS = {"flash_attention": {"SDPA": sdpa, "jax.nn attention": jax_attention}}
