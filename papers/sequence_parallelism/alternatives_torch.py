"""What one would do instead of a ring: gather all keys and values, or change from chunks of tokens to shares of the heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from common.distributed import Group
from papers.sequence_parallelism.ring_torch import Ring


def dense_attention(
    q: Float[Tensor, "batch head seq dim"], k: Float[Tensor, "batch head keys dim"], v: Float[Tensor, "batch head keys dim"]
) -> Float[Tensor, "batch head seq dim"]:
    """softmax(q k^T / sqrt(dim)) v with the weights kept, as in the paper's models."""
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v


fused_attention = F.scaled_dot_product_attention
"""PyTorch's own, which keeps no weights."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def gathered_attention(
    q: Float[Tensor, "batch head chunk dim"],
    k: Float[Tensor, "batch head chunk dim"],
    v: Float[Tensor, "batch head chunk dim"],
    group: Group,
    attend: Attend = dense_attention,
) -> Float[Tensor, "batch head chunk dim"]:
    """Every rank gathers all keys and values; their gradients are reduced and scattered."""
    return attend(q, _Gather.apply(k, group), _Gather.apply(v, group))


def ulysses_attention(
    q: Float[Tensor, "batch head chunk dim"],
    k: Float[Tensor, "batch head chunk dim"],
    v: Float[Tensor, "batch head chunk dim"],
    group: Group,
    attend: Attend = dense_attention,
) -> Float[Tensor, "batch head chunk dim"]:
    """All-to-all to whole sequences of head / ranks heads and back (Jacobs et al. 2023, DeepSpeed-Ulysses).

    Raises:
        ValueError: the ranks do not divide the heads.
    """
    if q.shape[1] % group.size:
        raise ValueError(
            f"{group.size} ranks share {q.shape[1]} heads; wanted a divisor of the heads, or the ring, which needs none"
        )
    whole = [_ToHeads.apply(each, group) for each in (q, k, v)]
    return _ToChunks.apply(attend(*whole), group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.ring = Ring(group)
        return torch.cat(group.all_gather(x), 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts = rearrange(gradients[0], "batch head (rank chunk) dim -> rank batch head chunk dim", rank=ctx.ring.group.size)
        return ctx.ring.own_sum(parts.contiguous()), None


def _to_heads(x: Tensor, group: Group) -> Tensor:
    parts = rearrange(x, "batch (rank head) chunk dim -> rank batch head chunk dim", rank=group.size).contiguous()
    return torch.cat(group.all_to_all(list(parts)), 2)


def _to_chunks(x: Tensor, group: Group) -> Tensor:
    parts = rearrange(x, "batch head (rank chunk) dim -> rank batch head chunk dim", rank=group.size).contiguous()
    return torch.cat(group.all_to_all(list(parts)), 1)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _to_heads(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _to_chunks(gradients[0], ctx.group), None


class _ToChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _to_chunks(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _to_heads(gradients[0], ctx.group), None
