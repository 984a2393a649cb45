"""Triton: a program takes one block of 256; nothing but codes, scales, the gradient and the direction touches memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from common.ops import Shipped

from .tables import STEPS, tables
from .torch_impl import Moments

_STEPS = tl.constexpr(float(STEPS))


def adam8bit(
    gradient: Float[Tensor, " count"],
    mean: UInt8[Tensor, " count"],
    mean_scale: Float32[Tensor, " blocks"],
    square: UInt8[Tensor, " count"],
    square_scale: Float32[Tensor, " blocks"],
    *,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    block: int = 256,
    grid: bool = False,
) -> Moments:
    inputs = [each.contiguous() for each in (gradient.detach(), mean, mean_scale, square, square_scale)]
    outputs = [torch.empty_like(inputs[0], dtype=torch.float32), *(torch.empty_like(each) for each in inputs[1:])]
    if mean_scale.numel() and not gradient.is_meta:
        books = [torch.tensor(each, device=gradient.device) for each in tables()]
        numbers = beta1, 1 - beta1, beta2, 1 - beta2, epsilon, 1 - beta1**step, math.sqrt(1 - beta2**step)
        _kernel[(mean_scale.numel(),)](
            *inputs, *outputs, *books, *numbers, gradient.numel(), GRID=grid, BLOCK=block, num_warps=_warps(block)
        )
    return tuple(outputs)  # type: ignore[return-value]


def shipped() -> Iterator[Shipped]:
    """Float32 gradients, as a projection gives them, and bfloat16; today's block and the paper's; the grid."""
    types = ["*fp32", "*u8", "*fp32", "*u8", "*fp32"]
    pointers = [f"{way}{i}" for way in ("in", "out") for i in range(5)] + [f"book{i}" for i in range(4)]
    for kind, block, grid in (("fp32", 256, False), ("bf16", 256, False), ("fp32", 2048, False), ("fp32", 256, True)):
        signature = dict(zip(pointers, [f"*{kind}", *types[1:], *types, *["*fp32"] * 4], strict=True))
        signature |= {f"number{i}": "fp32" for i in range(7)} | {"count": "i32", "GRID": "constexpr", "BLOCK": "constexpr"}
        name = f"{kind}-{block}{'-grid' if grid else ''}"
        options = {"num_warps": _warps(block), "num_stages": 1}
        yield Shipped(name, _kernel, signature, {"GRID": grid, "BLOCK": block}, options)


def _warps(block: int) -> int:
    """Four elements for each thread of a warp of 32, in 1 to 16 warps."""
    return min(max(block // 128, 1), 16)


@triton.jit
@no_type_check
def _kernel(
    in0, in1, in2, in3, in4, out0, out1, out2, out3, out4, book0, book1, book2, book3,
    number0, number1, number2, number3, number4, number5, number6, count, GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """in: gradient, mean, its scale, square, its scale; out: direction and the same again; books and numbers as in ``compiled``."""
    b = tl.program_id(0).to(tl.int64)
    at = b * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(in0 + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(book0 + tl.load(in1 + at, mask=inside, other=0).to(tl.int32)) * tl.load(in2 + b)
    v = tl.load(book1 + tl.load(in3 + at, mask=inside, other=0).to(tl.int32)) * tl.load(in4 + b)
    # What lies beyond the end must not reach the maximum.
    m = tl.where(inside, m * number0 + g * number1, 0.0)
    v = tl.where(inside, v * number2 + g * number3 * g, 0.0)
    tl.store(out0 + at, m / number5 / (tl.sqrt(v) / number6 + number4), mask=inside)
    m_scale, v_scale = tl.max(tl.abs(m), 0), tl.max(v, 0)
    tl.store(out2 + b, m_scale)
    tl.store(out4 + b, v_scale)
    tl.store(out1 + at, _encode(m, m_scale, book2, GRID, BLOCK).to(tl.uint8), mask=inside)
    tl.store(out3 + at, _encode(v, v_scale, book3, GRID, BLOCK).to(tl.uint8), mask=inside)


@triton.jit
@no_type_check
def _encode(x, scale, edges, GRID: tl.constexpr, BLOCK: tl.constexpr):
    """The count of the 255 sorted edges below each quotient, by eight halvings."""
    quotient = x * (1.0 / tl.maximum(scale, 1.1754943508222875e-38))
    if GRID:
        quotient = tl.floor((quotient + 1) * 0.5 * _STEPS + 0.5) * (2 / _STEPS) - 1
    found = tl.zeros([BLOCK], tl.int32)
    for k in tl.static_range(8):
        half = 128 >> k
        found += tl.where(quotient > tl.load(edges + found + (half - 1)), half, 0)
    if GRID:
        found = tl.where(scale > 0, found, 0)
    return found
