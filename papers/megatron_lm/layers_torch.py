"""Tensor parallelism in PyTorch: linear layers split by columns or rows, an embedding and a loss split by the vocabulary.

A column-parallel layer, a function of each number, and a row-parallel layer need two collectives in all: f before
(:func:`copy_to`, identity forward, all-reduce backward) and g behind (:func:`reduce_from`, the reverse). Source: paper, section
2.3; Shoeybi et al. 2019 (arXiv 1909.08053), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.distributed import Group
from common.distributed.differentiable import reduce_from


class Column(nn.Module):
    """y_i = x A_i^T + b_i, A split by its outputs. x is the same on all ranks and has passed f."""

    def __init__(self, shape: tuple[int, ...], **kind: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, **kind))
        self.bias = nn.Parameter(torch.empty(shape[:-1], **kind))

    def forward(self, x: Float[Tensor, "batch seq inputs"]) -> Float[Tensor, "batch seq outputs"]:
        return F.linear(x, self.weight.flatten(0, -2), self.bias.flatten())


class Row(nn.Module):
    """y = sum_i x_i A_i^T + b, A split by its inputs; g sums, and the bias, which every rank holds, is added once behind it."""

    def __init__(self, outputs: int, inputs: int, group: Group, **kind: Any) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.empty(outputs, inputs, **kind))
        self.bias = nn.Parameter(torch.empty(outputs, **kind))

    def forward(self, x: Float[Tensor, "batch seq inputs"]) -> Float[Tensor, "batch seq outputs"]:
        return reduce_from(F.linear(x, self.weight), self.group) + self.bias


def embed(tokens: Int[Tensor, "batch seq"], shard: Float[Tensor, "rows width"], group: Group) -> Float[Tensor, "batch seq width"]:
    """Rows of an embedding that is split by rows: each rank looks up its own tokens, gives zeros for the rest, and g sums."""
    local = tokens - group.rank * shard.shape[0]
    mine = (local >= 0) & (local < shard.shape[0])
    found = F.embedding(local.where(mine, 0), shard)
    return reduce_from(found * mine[..., None], group)


def cross_entropy(
    logits: Float[Tensor, "batch seq rows"], targets: Int[Tensor, "batch seq"], vocabulary: int, group: Group
) -> Float[Tensor, "batch seq"]:
    """log sum_j exp(z_j) - z_target of logits that are split by the vocabulary and never gathered.

    Three numbers for each token are reduced instead: the maximum, the sum of the exponentials and the target's logit. Rows beyond
    ``vocabulary`` are padding and have no probability, so the loss does not depend on how many ranks share it.
    """
    return _CrossEntropy.apply(logits, targets, vocabulary, group)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, vocabulary: int, group: Group) -> Tensor:
        first, rows = group.rank * logits.shape[-1], logits.shape[-1]
        padding = torch.arange(first, first + rows, device=logits.device) >= vocabulary
        logits = logits.masked_fill(padding, -torch.inf)
        shifted = logits - group.all_reduce(logits.amax(-1), "max")[..., None]
        local = targets - first
        mine = (local >= 0) & (local < rows)
        local = local.where(mine, 0)
        target = shifted.gather(-1, local[..., None])[..., 0].where(mine, 0.0)
        exponentials = shifted.exp()
        total, target = group.all_reduce(torch.stack([exponentials.sum(-1), target]))
        ctx.save_for_backward(exponentials / total[..., None], local, mine)
        return total.log() - target

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local, mine = ctx.saved_tensors
        gradient = probabilities.clone()
        gradient.scatter_add_(-1, local[..., None], -mine[..., None].to(gradient.dtype))
        return gradient * gradients[0][..., None], None, None, None
