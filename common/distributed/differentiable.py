"""Collectives that autograd passes through: the conjugate pair of tensor parallelism."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .group import Group


def copy_to(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """x itself, which every rank uses in its own way: the gradient is the sum over ranks.

    The operator f of Shoeybi et al. 2019 (Megatron-LM, section 3): identity forward, all-reduce backward.
    """
    return _CopyTo.apply(x, group)


def reduce_from(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """The sum of x over ranks, which every rank uses in the same way: the gradient passes as it is.

    The operator g of Shoeybi et al. 2019 (Megatron-LM, section 3): all-reduce forward, identity backward.
    """
    return _ReduceFrom.apply(x, group)


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_reduce(gradients[0].contiguous()), None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.all_reduce(x.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
