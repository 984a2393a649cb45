"""PyTorch: a few passes in place. The zero point moves the limits, and the quotient is cut before it is rounded."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layout import limits, split


def fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*channels"],
    *,
    bits: int,
    axis: int | None = None,
    group: int | None = None,
    zero_point: Int[Tensor, "*channels"] | None = None,
    signed: bool = True,
) -> Float[Tensor, "*shape"]:
    shape = split(x.shape, axis, group)
    low, high = bounds(limits(bits, signed), zero_point, scale, shape[1])
    return _FakeQuantize.apply(x, scale, low, high, shape)


def bounds(ends: tuple[int, int], zero_point: Tensor | None, scale: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Limits of the rounded quotient, (1, channels, 1), or of one channel if all are alike. Shared with Triton."""
    if zero_point is None:
        low, high = (torch.full((1, 1, 1), float(end), dtype=_wide(scale), device=scale.device) for end in ends)
        return low, high
    shift = zero_point.to(_wide(scale)).reshape(1, channels, 1)
    return ends[0] - shift, ends[1] - shift


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, shape: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(x, scale, low, high)
        ctx.split = shape
        quotient, step = _quotient(x, scale, shape)
        y = torch.clamp_(quotient, low, high).round_().mul_(step)
        return y.reshape(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, scale, low, high = ctx.saved_tensors
        quotient, _ = _quotient(x, scale, ctx.split)
        rounded = quotient.round()
        place = rounded.clamp(low, high)
        inside = rounded == place
        seeds = dy.reshape(quotient.shape)
        to_scale = None
        if ctx.needs_input_grad[1]:
            terms = place.sub_(torch.where(inside, quotient, 0)).mul_(seeds)
            to_scale = terms.sum((0, 2)).reshape(scale.shape).to(scale.dtype)
        return torch.where(inside, seeds, 0).reshape(x.shape), to_scale, None, None, None


def _quotient(x: Tensor, scale: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """x / s as (outer, channels, inner), in fresh memory, and s as (1, channels, 1)."""
    step = scale.to(_wide(scale)).reshape(1, shape[1], 1)
    return x.to(step.dtype).reshape(shape) * step.reciprocal(), step


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
