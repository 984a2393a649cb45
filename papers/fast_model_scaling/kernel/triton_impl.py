"""Grouped convolution in Triton: a program has a tile of places of one image, one group, and a slice of the group's outputs.

For every tap it multiplies the pixels that the tap reads with the tap's matrix. The gradient of x is the same walk from the
other side; that of the weight multiplies pixels and gradients over a fixed share of all places, and the shares are added in
order, so nothing depends on which program is first. Groups narrower than 16 channels fill a matrix unit's operand with zeros.
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

from .layout import Geometry, geometry

PLACES = 32
OPTIONS = {"num_warps": 4, "num_stages": 1}
OPERAND = 16
"""Channels of an operand, what matrix units take at least: with more, or more places, some targets spill registers."""
SHARES = 64
"""Programs that share the places of the weight's gradient, at most. The same for every GPU, and so are the sums."""


def group_conv(
    x: Float[Tensor, "batch height width channel"],
    weight: Float[Tensor, "kernel_height kernel_width each out"],
    *,
    stride: int = 1,
) -> Float[Tensor, "batch out_height out_width out"]:
    if x.dtype == torch.float64:
        raise ValueError("group_conv: backend 'triton' computes in float32, got float64; use backend='torch'")
    return _Convolution.apply(x, weight, geometry(tuple(x.shape), tuple(weight.shape), stride))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.geometry = g
        y = x.new_empty(g.batch, g.out_height, g.out_width, g.groups * g.out)
        _taps(x, weight, y, g, backward=False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        g, dy = ctx.geometry, dy.contiguous()
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            _taps(dy, weight, dx, g, backward=True)
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(x, dy, g).to(weight.dtype)
        return dx, dweight, None


def _taps(source: Tensor, weight: Tensor, target: Tensor, g: Geometry, backward: bool) -> None:
    """``source`` has ``inner`` channels of a group that are summed over, ``target`` has ``outer``."""
    inner, outer = (g.out, g.each) if backward else (g.each, g.out)
    strides = (1, g.groups * g.out) if backward else (g.groups * g.out, 1)
    tiles, slices = triton.cdiv(target.shape[1] * target.shape[2], PLACES), triton.cdiv(outer, OPERAND)
    if target.numel() and not target.is_meta:
        taps_kernel[(g.batch * tiles, g.groups * slices)](
            source, weight, target, *source.shape[1:3], *target.shape[1:3], g.groups, inner, outer, *strides, g.out,
            g.each * g.groups * g.out, tiles, slices, g.stride, g.top, g.left,
            ROWS=g.rows, COLUMNS=g.columns, BACKWARD=backward, PLACES=PLACES, INNER=OPERAND, OUTER=OPERAND, **OPTIONS,
        )  # fmt: skip


def _weight_gradient(x: Tensor, dy: Tensor, g: Geometry) -> Tensor:
    tiles = triton.cdiv(g.out_height * g.out_width, PLACES)
    shares = min(g.batch * tiles, SHARES)
    sums = x.new_empty(shares, g.rows, g.columns, g.each, g.groups * g.out, dtype=torch.float32)
    downs, slices = triton.cdiv(g.each, OPERAND), triton.cdiv(g.out, OPERAND)
    if sums.numel() and not sums.is_meta:
        sums_kernel[(shares, g.groups * downs * slices, g.rows * g.columns)](
            x, dy, sums, g.height, g.width, g.out_height, g.out_width, g.groups, g.each, g.out, tiles, g.batch * tiles, downs, slices,
            g.stride, g.top, g.left, g.columns, PLACES=PLACES, INNER=OPERAND, OUTER=OPERAND, **OPTIONS,
        )  # fmt: skip
    return sums.sum(0)


@triton.jit
@no_type_check
def taps_kernel(
    source, weight, target, height, width, out_height, out_width, groups, inner, outer, inner_step, outer_step, group_step,
    tap_step, tiles, slices, stride, top, left,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BACKWARD: tl.constexpr, PLACES: tl.constexpr, INNER: tl.constexpr,
    OUTER: tl.constexpr,
):  # fmt: skip
    """target[i, j, n] = sum of source[s i + u - p, s j + v - p, k] weight[u, v, k, n] of one group; BACKWARD: of
    source[(i + p - u) / s, ...], where that is whole. ``height`` and ``width`` are those of the source."""
    # 64-bit addresses for the image, 32-bit distances within it.
    image, group = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1) // slices
    source += image * height * width * groups * inner + group * inner
    target += image * out_height * out_width * groups * outer + group * outer
    weight += group * group_step
    place = tl.program_id(0) % tiles * PLACES + tl.arange(0, PLACES)
    n = tl.program_id(1) % slices * OUTER + tl.arange(0, OUTER)
    here, mine = place < out_height * out_width, n < outer
    i, j = place // out_width, place % out_width
    total = tl.zeros((PLACES, OUTER), tl.float32)
    for u in range(ROWS):
        row, within = _read(i, u, height, stride, top, BACKWARD)
        within &= here
        for v in range(COLUMNS):
            column, inside = _read(j, v, width, stride, left, BACKWARD)
            inside &= within
            at = (row * width + column) * (groups * inner)
            taps = weight + (u * COLUMNS + v) * tap_step
            for first in range(0, inner, INNER):
                k = first + tl.arange(0, INNER)
                some = k < inner
                pixel = tl.load(source + at[:, None] + k[None, :], mask=inside[:, None] & some[None, :], other=0.0)
                tap = tl.load(
                    taps + k[:, None] * inner_step + n[None, :] * outer_step, mask=some[:, None] & mine[None, :], other=0.0
                )
                total = tl.dot(pixel, tap, total, input_precision="ieee")
    out = target + (place * (groups * outer))[:, None] + n[None, :]
    tl.store(out, total.to(target.dtype.element_ty), mask=here[:, None] & mine[None, :])


@triton.jit
@no_type_check
def _read(index, tap, size, stride, pad, BACKWARD: tl.constexpr):
    """Where a place reads with a tap, along one axis, and whether there is anything to read."""
    if BACKWARD:
        scaled = index + pad - tap
        found = scaled // stride
        return found, (scaled >= 0) & (found * stride == scaled) & (found < size)
    found = index * stride + tap - pad
    return found, (found >= 0) & (found < size)


@triton.jit
@no_type_check
def sums_kernel(
    x, dy, sums, height, width, out_height, out_width, groups, each, out, tiles, count, downs, slices, stride, top, left, columns,
    PLACES: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr,
):  # fmt: skip
    """One tap of one group: sums[share, u, v, c, o] of x[b, s i + u - p, s j + v - p, c] dy[b, i, j, o] over every ``shares``-th
    of the ``count`` tiles, ``tiles`` of which make up an image."""
    share, shares, tap = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    group, part = tl.program_id(1) // (downs * slices), tl.program_id(1) % (downs * slices)
    c = part // slices * INNER + tl.arange(0, INNER)
    o = part % slices * OUTER + tl.arange(0, OUTER)
    total = tl.zeros((INNER, OUTER), tl.float32)
    for tile in range(share, count, shares):
        image = (tile // tiles).to(tl.int64)
        place = tile % tiles * PLACES + tl.arange(0, PLACES)
        i, j, here = place // out_width, place % out_width, place < out_height * out_width
        row, column = i * stride + tap // columns - top, j * stride + tap % columns - left
        inside = here & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixels = x + image * height * width * groups * each + group * each
        seeds = dy + image * out_height * out_width * groups * out + group * out
        at = (row * width + column) * (groups * each)
        pixel = tl.load(pixels + c[:, None] + at[None, :], mask=(c < each)[:, None] & inside[None, :], other=0.0)
        seed = tl.load(seeds + (place * (groups * out))[:, None] + o[None, :], mask=here[:, None] & (o < out)[None, :], other=0.0)
        total = tl.dot(pixel, seed, total, input_precision="ieee")
    outputs = groups * out
    rows = ((share * tl.num_programs(2) + tap).to(tl.int64) * each + c) * outputs + group * out
    tl.store(sums + rows[:, None] + o[None, :], total, mask=(c < each)[:, None] & (o < out)[None, :])


def shipped() -> Iterator[Shipped]:
    """A stride of 1 is compiled in, as Triton does by itself at a launch; with "any" it is an argument."""
    for kernel, kind, stride in ((3, "fp32", 1), (3, "bf16", 1), (3, "fp16", 0), (7, "fp32", 0)):
        steps = {"stride": 1} if stride else {}
        name = f"k{kernel}-s{stride or 'any'}-{kind}"
        shape = {"PLACES": PLACES, "INNER": OPERAND, "OUTER": OPERAND}
        for form, backward in (("forward", False), ("input-gradient", True)):
            constants = steps | {"ROWS": kernel, "COLUMNS": kernel, "BACKWARD": backward, **shape}
            yield _shipped(f"{form}-{name}", taps_kernel, kind, constants)
        yield _shipped(f"weight-gradient-{name}", sums_kernel, kind, steps | shape)


def _shipped(name: str, kernel: Any, kind: str, constants: dict[str, Any]) -> Shipped:
    types = dict.fromkeys(("source", "weight", "target", "x", "dy"), f"*{kind}") | {"sums": "*fp32"}
    signature = {x: "constexpr" if x in constants else types.get(x, "i32") for x in kernel.arg_names}
    return Shipped(name, kernel, signature, constants, OPTIONS)
