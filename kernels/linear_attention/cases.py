"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case


def _sequence(
    n: int, d: int, e: int, slopes: list[float], *, batch: int = 1, state: bool = False, **options: Any
) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        heads = len(slopes)
        arrays = {
            "q": rng.standard_normal((batch, heads, n, d)) / d**0.5,
            "k": rng.standard_normal((batch, heads, n, d)),
            "v": rng.standard_normal((batch, heads, n, e)),
            "slope": np.array(slopes),
            "initial_state": rng.standard_normal((batch, heads, d, e)) if state else None,
        }
        return {**arrays, **options}

    return make


def _token(batch: int, d: int, e: int, slopes: list[float]) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        at = batch, len(slopes)
        shapes = {"q": (*at, d), "k": (*at, d), "v": (*at, e), "state": (*at, d, e)}
        return {**{name: rng.standard_normal(shape) for name, shape in shapes.items()}, "slope": np.array(slopes)}

    return make


GENTLE = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
"""The slopes of a model with four heads."""


def _large(n: int) -> Case:
    return Case(f"n={n}", _sequence(n, 64, 64, GENTLE), {"float32": 1e-5}, large=True)


EXACT = {"float64": 1e-9, "float32": 1e-5}
SINGLE = {"float32": 1e-5}
SLOPES = [0.5, 5.0, 1e-4]
"""An ordinary head, one that forgets within a token, one that forgets nothing."""
UP_TO_64 = ("torch", "jax", "pallas")
"""Triton offers blocks that fit into registers on every GPU, 16 and 32."""
ALL_VARIANTS = ("torch", "jax", "triton")
"""Pallas offers the loop alone."""

CASES = {
    "lightning_attention": [
        Case("empty", _sequence(0, 16, 16, SLOPES, state=True, return_state=True), EXACT),
        Case("one token", _sequence(1, 16, 32, SLOPES, return_state=True), SINGLE),
        Case(
            "63 of 64",
            _sequence(63, 16, 16, SLOPES[:2], state=True, return_state=True, block=64),
            SINGLE,
            backends=("torch", "jax"),
        ),
        Case("two blocks", _sequence(64, 32, 16, SLOPES[:2], block=32), SINGLE),
        Case("one over", _sequence(65, 16, 16, SLOPES, state=True, return_state=True, block=64), SINGLE, backends=UP_TO_64),
        Case("ragged", _sequence(100, 20, 24, SLOPES, state=True, return_state=True, block=16), EXACT),
        Case("default block", _sequence(256, 32, 32, SLOPES[1:]), SINGLE),
        Case("wide heads", _sequence(20, 144, 48, [0.3], batch=2, state=True, return_state=True), SINGLE),
        Case(
            "parallel",
            _sequence(50, 20, 24, SLOPES[:2], state=True, return_state=True, block=16, variant="parallel"),
            SINGLE,
            backends=ALL_VARIANTS,
        ),
        Case(
            "left",
            _sequence(50, 20, 24, SLOPES[:2], state=True, return_state=True, block=16, variant="left"),
            SINGLE,
            backends=ALL_VARIANTS,
        ),
        Case(
            "half precision",
            _sequence(70, 32, 16, [0.5, 0.1], state=True, return_state=True, block=32),
            {"float16": 2e-3},
            why="outputs and gradients are rounded to 11 bits",
            backends=("torch", "triton"),
        ),
        *(_large(n) for n in (2048, 4096, 8192, 16384)),
    ],
    "lightning_step": [
        Case("a token", _token(2, 12, 20, SLOPES), EXACT),
        Case("a batch of tokens", _token(16, 64, 64, GENTLE), {"float32": 1e-5}, large=True),
    ],
}


def _softmax_attention(q: Any, k: Any, v: Any, slope: Any, **_: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _left_product(q: Any, k: Any, v: Any, slope: Any, **_: Any) -> Any:
    from kernels.linear_attention import lightning_attention

    return lightning_attention(q, k, v, slope, variant="left")


class _Given:
    """Stands for the model's fused projection, and hands over q, k, v where the model splits it."""

    def __init__(self, *tensors: Any) -> None:
        self.tensors = tensors

    def reshape(self, *_: int) -> _Given:
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> tuple[Any, ...]:
        return tuple(x.transpose(1, 2) for x in arguments[0].tensors)


def minimax(q: Any, k: Any, v: Any, slope: Any, *, block: int = 256, **_: Any) -> Any:
    """The block loop of transformers' MiniMax on these very tensors: its own code, its own block of 256 tokens.

    The forward function of the layer is run on a stand-in for the layer, in which the projections, the activation, the
    norm and the gate do nothing and cost nothing; the decay factors are made once, as the layer makes them. What remains
    beside the loop is joining its blocks and one transposing copy of o.
    """
    import types

    import torch
    from einops import rearrange
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    kept: list[Any] = []
    one = torch.ones((), dtype=q.dtype)

    def keep(o: Any) -> Any:
        kept.append(o)
        return one

    layer = types.SimpleNamespace(layer_idx=0, block_size=block, head_dim=q.shape[3], num_attention_heads=q.shape[1])
    layer.slope_rate, layer.query_decay, layer.key_decay, layer.diagonal_decay = _minimax_decay(
        tuple(slope.tolist()), block, q.dtype
    )
    layer.qkv_proj = layer.out_proj = lambda x: x
    layer.act_fn = lambda _: _Given(q, k, v)
    layer.norm = keep
    layer.output_gate = lambda _: one
    MiniMaxLightningAttention.forward(layer, q.new_empty(q.shape[0], q.shape[2], 0), None, None)  # type: ignore[arg-type]
    return rearrange(kept[0], "b n (h e) -> b h n e", h=q.shape[1])


@functools.cache
def _minimax_decay(slope: tuple[float, ...], block: int, dtype: Any) -> tuple[Any, ...]:
    import types

    import torch
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    rate = torch.tensor(slope, dtype=dtype)[:, None, None]
    return rate, *MiniMaxLightningAttention.decay_factors(types.SimpleNamespace(block_size=block), rate)  # type: ignore[arg-type]


PEERS = {
    "lightning_attention": {
        "SDPA (causal)": _softmax_attention,
        "left product (LA1)": _left_product,
        "MiniMax block loop": minimax,
    }
}
