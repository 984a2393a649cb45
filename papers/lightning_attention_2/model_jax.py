"""The attention mechanisms of the comparison in JAX, to put into an unchanged decoder; twin: ``model_torch``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from common.models.transformer_jax import softmax_attention
from kernels.linear_attention import alibi_slopes, lightning_attention

FORGET = 64
"""Tokens after which the faulty mechanism forgets its state."""


def forgetful(q: Array, k: Array, v: Array, slope: Array, **options: Any) -> Any:
    """Lightning Attention-2 without its second half: every block starts from an empty state. A fault, for controls."""
    cuts = list(range(FORGET, q.shape[2], FORGET))
    parts = [
        lightning_attention(*part, slope, **options) for part in zip(*(jnp.split(x, cuts, 2) for x in (q, k, v)), strict=True)
    ]
    if options.get("return_state"):
        return jnp.concatenate([o for o, _ in parts], 2), parts[-1][1]
    return jnp.concatenate(parts, 2)


def mechanism(kind: str, heads: int, depth: int, fault: bool = False) -> Callable[[Array, Array, Array, int], Array]:
    """``attention(q, k, v, layer)`` for a decoder: "softmax", or "loop", "parallel", "left" of the linear kernel."""
    if kind == "softmax":
        return softmax_attention
    slopes = [alibi_slopes(heads, layer, depth) for layer in range(depth)]
    attend = forgetful if fault else lightning_attention

    def attention(q: Array, k: Array, v: Array, layer: int) -> Array:
        return attend(q, k, v, jnp.asarray(slopes[layer], q.dtype), variant=kind)

    return attention
