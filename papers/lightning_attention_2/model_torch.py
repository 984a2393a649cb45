"""The attention mechanisms of the comparison in PyTorch, to put into an unchanged decoder; twin: ``model_jax``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.models.transformer_torch import softmax_attention
from kernels.linear_attention import alibi_slopes, lightning_attention

FORGET = 64
"""Tokens after which the faulty mechanism forgets its state."""


def forgetful(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, **options: Any) -> Any:
    """Lightning Attention-2 without its second half: every block starts from an empty state. A fault, for controls."""
    parts = [lightning_attention(*part, slope, **options) for part in zip(*(x.split(FORGET, 2) for x in (q, k, v)), strict=True)]
    if options.get("return_state"):
        return torch.cat([o for o, _ in parts], 2), parts[-1][1]
    return torch.cat(parts, 2)


def mechanism(kind: str, heads: int, depth: int, fault: bool = False) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """``attention(q, k, v, layer)`` for a decoder: "softmax", or "loop", "parallel", "left" of the linear kernel.

    The decay of each head and layer is the paper's; the decoder normalises the output (``output_norm``).
    """
    if kind == "softmax":
        return softmax_attention
    slopes = [torch.from_numpy(alibi_slopes(heads, layer, depth)) for layer in range(depth)]
    attend = forgetful if fault else lightning_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        return attend(q, k, v, slopes[layer].to(q), variant=kind)

    return attention


def recurrence(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(-s) S_(t-1) + k_t^T v_t and o_t = q_t S_t, token by token: the oracle, in float64, for short sequences.

    Shapes: q, k (batch, head, n, d); v (batch, head, n, e); slope (head,); first state (batch, head, d, e). Returns o and the
    last state.
    """
    decay = torch.exp(-slope)[:, None, None]
    outputs = []
    for t in range(q.shape[2]):
        state = decay * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 2), state
