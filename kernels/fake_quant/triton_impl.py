"""Triton: one pass forwards, one backwards; the sums of the scale's gradient are PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped

from .layout import limits, split
from .torch_impl import bounds

BLOCK = 1024
OPTIONS = {"num_warps": 4, "num_stages": 1}


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
    if x.dtype == torch.float64:
        raise ValueError("fake_quantize: backend 'triton' computes in float32, got float64; use backend='torch'")
    shape = split(x.shape, axis, group)
    low, high = bounds(limits(bits, signed), zero_point, scale, shape[1])
    return _FakeQuantize.apply(x, scale, low.expand(1, shape[1], 1), high.expand(1, shape[1], 1), shape)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, shape: tuple[int, int, int]) -> Tensor:
        x, scale, low, high = (each.contiguous() for each in (x, scale, low, high))
        ctx.save_for_backward(x, scale, low, high)
        ctx.split = shape
        y = torch.empty_like(x)
        _launch(forward_kernel, x, scale, low, high, y, shape=shape)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, scale, low, high = ctx.saved_tensors
        dx, terms = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
        _launch(backward_kernel, x, scale, low, high, dy.contiguous(), dx, terms, shape=ctx.split)
        to_scale = terms.view(ctx.split).sum((0, 2)).view(scale.shape).to(scale.dtype) if ctx.needs_input_grad[1] else None
        return dx, to_scale, None, None, None


def _launch(kernel: Any, x: Tensor, *rest: Tensor, shape: tuple[int, int, int]) -> None:
    if x.numel() and not x.is_meta:
        kernel[(triton.cdiv(x.numel(), BLOCK),)](x, *rest, x.numel(), shape[1], shape[2], BLOCK, **OPTIONS)


@triton.jit
@no_type_check
def forward_kernel(x, scale, low, high, y, count, channels, inner, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    quotient, step, least, most = _parts(x, scale, low, high, place, count, channels, inner)
    found = _rounded(tl.minimum(tl.maximum(quotient, least), most)) * step
    tl.store(y + place, found.to(y.dtype.element_ty), mask=place < count)


@triton.jit
@no_type_check
def backward_kernel(x, scale, low, high, dy, dx, terms, count, channels, inner, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    quotient, _, least, most = _parts(x, scale, low, high, place, count, channels, inner)
    rounded = _rounded(quotient)
    cut = tl.minimum(tl.maximum(rounded, least), most)
    seed = tl.load(dy + place, mask=place < count, other=0.0).to(tl.float32)
    inside = rounded == cut
    tl.store(dx + place, tl.where(inside, seed, 0.0).to(dx.dtype.element_ty), mask=place < count)
    tl.store(terms + place, seed * (cut - tl.where(inside, quotient, 0.0)), mask=place < count)


@triton.jit
@no_type_check
def _parts(x, scale, low, high, place, count, channels, inner):
    inside = place < count
    channel = place // inner % channels
    step = tl.load(scale + channel, mask=inside, other=1.0).to(tl.float32)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    least = tl.load(low + channel, mask=inside, other=0.0)
    return value * tl.div_rn(1.0, step), step, least, tl.load(high + channel, mask=inside, other=0.0)


@triton.jit
@no_type_check
def _rounded(x):
    """To the nearest whole number, ties to even: above 2^23 there are no others, and below it adding 1.5 2^23 rounds."""
    return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


def shipped() -> Iterator[Shipped]:
    whole = dict.fromkeys(("count", "channels", "inner"), "i32")
    for kernel in (forward_kernel, backward_kernel):
        for kind in ("fp32", "bf16", "fp16"):
            types = {**dict.fromkeys(("low", "high", "terms"), "*fp32"), **whole, "BLOCK": "constexpr"}
            signature = {name: types.get(name, f"*{kind}") for name in kernel.arg_names}
            yield Shipped(f"{kernel.__name__.removesuffix('_kernel')}-{kind}", kernel, signature, {"BLOCK": BLOCK}, OPTIONS)
