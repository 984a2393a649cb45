"""Triton: a program has a tile of places and a tile of outputs of one group, and writes them where the shuffle puts them.

The gradient of x is the same walk with inputs and outputs exchanged: there the reads are shuffled. That of the weight is a sum
over all places: every program adds up a fixed share of them, and the shares are added in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped

TILE = {"PLACES": 32, "OUTER": 32, "INNER": 16}
OPTIONS = {"num_warps": 4, "num_stages": 2}
SHARES = 64
"""Programs that share the places of the weight's gradient, at most. The same for every GPU, and so are the sums."""


def group_pointwise_shuffle(
    x: Float[Tensor, "*places inputs"], weight: Float[Tensor, "group each_in each_out"]
) -> Float[Tensor, "*places outputs"]:
    if x.dtype == torch.float64:
        raise ValueError("group_pointwise_shuffle: backend 'triton' computes in float32, got float64; use backend='torch'")
    return _Shuffled.apply(x, weight)


class _Shuffled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        y = x.new_empty(*x.shape[:-1], weight.shape[0] * weight.shape[2])
        _multiply(x, weight, y, backward=False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy, dx, dweight = dy.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            _multiply(dy, weight, dx, backward=True)
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(x, dy, weight)
        return dx, dweight


def _multiply(source: Tensor, weight: Tensor, target: Tensor, backward: bool) -> None:
    groups, inner, outer = weight.shape
    if backward:
        inner, outer = outer, inner
    places = target.numel() // target.shape[-1]
    grid = (triton.cdiv(places, TILE["PLACES"]), triton.cdiv(outer, TILE["OUTER"]), groups)
    if places and not target.is_meta:
        product_kernel[grid](source, weight, target, places, inner, outer, groups, BACKWARD=backward, **TILE, **OPTIONS)


def _weight_gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    groups, inner, outer = weight.shape
    places = x.numel() // x.shape[-1]
    tiles = triton.cdiv(places, TILE["PLACES"])
    shares = max(1, min(tiles, SHARES))
    sums = x.new_zeros(shares, *weight.shape, dtype=torch.float32)
    grid = (shares, triton.cdiv(inner, TILE["INNER"]) * triton.cdiv(outer, TILE["OUTER"]), groups)
    if places and not sums.is_meta:
        sums_kernel[grid](x, dy, sums, places, inner, outer, groups, tiles, **TILE, **OPTIONS)
    return sums.sum(0).to(weight.dtype)


@triton.jit
@no_type_check
def product_kernel(
    source, weight, target, places, inner, outer, groups, BACKWARD: tl.constexpr, PLACES: tl.constexpr, OUTER: tl.constexpr,
    INNER: tl.constexpr,
):  # fmt: skip
    """target[n, o] = sum_i source[n, i] w[i, o] of one group. Outputs of the forward pass lie at o G + g, and so do the inputs
    of the backward pass; the others lie at g I + i."""
    g = tl.program_id(2)
    n = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    o = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    weight += g * inner * outer
    total = tl.zeros((PLACES, OUTER), tl.float32)
    for start in range(0, inner, INNER):
        i = start + tl.arange(0, INNER)
        if BACKWARD:
            from_, at = i * groups + g, o[None, :] * inner + i[:, None]
        else:
            from_, at = g * inner + i, i[:, None] * outer + o[None, :]
        rows = source + (n * (inner * groups))[:, None] + from_[None, :]
        a = tl.load(rows, mask=(n < places)[:, None] & (i < inner)[None, :], other=0.0).to(tl.float32)
        w = tl.load(weight + at, mask=(i < inner)[:, None] & (o < outer)[None, :], other=0.0).to(tl.float32)
        total += tl.dot(a, w, input_precision="ieee")
    to = g * outer + o if BACKWARD else o * groups + g
    out = target + (n * (outer * groups))[:, None] + to[None, :]
    tl.store(out, total.to(target.dtype.element_ty), mask=(n < places)[:, None] & (o < outer)[None, :])


@triton.jit
@no_type_check
def sums_kernel(
    x, dy, sums, places, inner, outer, groups, tiles, PLACES: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr
):  # fmt: skip
    """sums[share, g, i, j] of x[n, g I + i] dy[n, j G + g] over every ``shares``-th of the tiles of places."""
    share, shares, g = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    across = tl.cdiv(outer, OUTER)
    i = tl.program_id(1) // across * INNER + tl.arange(0, INNER)
    o = tl.program_id(1) % across * OUTER + tl.arange(0, OUTER)
    total = tl.zeros((INNER, OUTER), tl.float32)
    for tile in range(share, tiles, shares):
        n = tile * PLACES + tl.arange(0, PLACES).to(tl.int64)
        columns = x + (n * (inner * groups))[None, :] + (g * inner + i)[:, None]
        a = tl.load(columns, mask=(i < inner)[:, None] & (n < places)[None, :], other=0.0).to(tl.float32)
        seeds = dy + (n * (outer * groups))[:, None] + (o * groups + g)[None, :]
        b = tl.load(seeds, mask=(n < places)[:, None] & (o < outer)[None, :], other=0.0).to(tl.float32)
        total += tl.dot(a, b, input_precision="ieee")
    at = sums + ((share * groups + g).to(tl.int64) * inner + i)[:, None] * outer + o[None, :]
    tl.store(at, total, mask=(i < inner)[:, None] & (o < outer)[None, :])


def shipped() -> Iterator[Shipped]:
    for kind in ("fp32", "bf16", "fp16"):
        for form, backward in (("forward", False), ("input-gradient", True)):
            yield _shipped(f"{form}-{kind}", product_kernel, kind, {"BACKWARD": backward, **TILE})
        yield _shipped(f"weight-gradient-{kind}", sums_kernel, kind, dict(TILE))


def _shipped(name: str, kernel: Any, kind: str, constants: dict[str, Any]) -> Shipped:
    types = dict.fromkeys(("source", "weight", "target", "x", "dy"), f"*{kind}") | {"sums": "*fp32"}
    signature = {each: "constexpr" if each in constants else types.get(each, "i32") for each in kernel.arg_names}
    return Shipped(name, kernel, signature, constants, OPTIONS)
