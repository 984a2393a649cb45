"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

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
HALF = "float16 outputs and gradients are rounded to 11 bits"
SLOPES = [0.5, 5.0, 1e-4]
"""An ordinary head, one that forgets within a token, one that forgets nothing."""

CASES = {
    "lightning_attention": [
        Case("empty", _sequence(0, 16, 16, SLOPES, state=True, return_state=True), EXACT),
        Case("one token", _sequence(1, 16, 32, SLOPES, return_state=True), EXACT),
        Case("63 of 64", _sequence(63, 16, 16, SLOPES[:2], state=True, return_state=True, block=64), EXACT),
        Case("one block", _sequence(64, 32, 16, SLOPES, block=64), EXACT),
        Case("one over", _sequence(65, 16, 16, SLOPES, state=True, return_state=True, block=64), EXACT),
        Case("ragged blocks of 16", _sequence(100, 20, 24, SLOPES, batch=2, state=True, return_state=True, block=16), EXACT),
        Case("default block", _sequence(256, 32, 32, SLOPES[1:]), EXACT),
        Case("wide heads", _sequence(40, 144, 48, [0.3], state=True, return_state=True, block=32), EXACT),
        Case(
            "parallel",
            _sequence(100, 20, 24, SLOPES, batch=2, state=True, return_state=True, block=16, variant="parallel"),
            EXACT,
        ),
        Case(
            "left",
            _sequence(100, 20, 24, SLOPES, batch=2, state=True, return_state=True, block=16, variant="left"),
            EXACT,
            backends=("torch", "jax"),
        ),
        Case(
            "half precision",
            _sequence(100, 32, 16, [0.5, 0.1], state=True, return_state=True, block=64),
            {"float16": 2e-3},
            why=HALF,
            backends=("torch",),
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
    """Stands where a layer of the model would work, and hands over what it was given."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __call__(self, x: Any) -> Any:
        return x if self.value is None else self.value


def minimax(q: Any, k: Any, v: Any, slope: Any, **_: Any) -> Any:
    """The block loop of transformers' MiniMax model on these tensors, its own code and its own block of 256.

    Everything around the loop is taken out: the projection returns q, k and v as they are, activation, norm and output
    projection return their input, and the gate is open (the sigmoid of infinity). Its cost beyond the loop is two
    transpositions and one product with ones, elementwise in o.
    """
    import torch
    from einops import rearrange
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    layer = MiniMaxLightningAttention.__new__(MiniMaxLightningAttention)
    torch.nn.Module.__init__(layer)
    heads, d = q.shape[1], q.shape[3]
    layer.layer_idx, layer.block_size, layer.head_dim, layer.num_attention_heads = 0, 256, d, heads
    layer.slope_rate = slope[:, None, None]
    layer.query_decay, layer.key_decay, layer.diagonal_decay = layer.decay_factors(layer.slope_rate)
    packed = rearrange(torch.stack([q, k, v]), "three b h n d -> b n (h three d)")
    for name, value in (("qkv_proj", packed), ("act_fn", None), ("norm", None), ("out_proj", None)):
        object.__setattr__(layer, name, _Given(value))
    object.__setattr__(layer, "output_gate", _Given(torch.full((), float("inf"), dtype=q.dtype)))
    o, _ = layer.forward(packed[..., : heads * d], None, None)  # type: ignore
    return rearrange(o, "b n (h d) -> b h n d", h=heads)


PEERS = {
    "lightning_attention": {
        "SDPA (causal)": _softmax_attention,
        "left product (LA1)": _left_product,
        "MiniMax block loop": minimax,
    }
}
