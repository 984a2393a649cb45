"""Depthwise convolution in Triton: a program has a tile of places of one image and a slice of its channels.

The gradient of x is the forward's walk over the taps from the other side. That of the weight is a sum over all places: every
program adds up a fixed share of them, and the shares are added in order, so nothing depends on which program is first.
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

TILE = {"PLACES": 32, "CHANNELS": 32}
OPTIONS = {"num_warps": 4, "num_stages": 2}
SHARES = 128
"""Programs that share the places of the weight's gradient, at most. The same for every GPU, and so are the sums."""


def depthwise_conv(
    x: Float[Tensor, "batch height width channel"],
    weight: Float[Tensor, "kernel_height kernel_width channel"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
) -> Float[Tensor, "batch out_height out_width channel"]:
    if x.dtype == torch.float64:
        raise ValueError("depthwise_conv: backend 'triton' computes in float32, got float64; use backend='torch'")
    return _Convolution.apply(x, weight, geometry(tuple(x.shape), tuple(weight.shape), stride, dilation, padding))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.geometry = g
        y = x.new_empty(g.batch, g.out_height, g.out_width, g.channels)
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
    tiles = triton.cdiv(target.shape[1] * target.shape[2], TILE["PLACES"])
    grid = (g.batch * tiles, triton.cdiv(g.channels, TILE["CHANNELS"]))
    if target.numel() and not target.is_meta:
        taps_kernel[grid](
            source, weight, target, *source.shape[1:3], *target.shape[1:3], g.channels, tiles, g.stride, g.dilation, g.top, g.left,
            g.kernel_height, g.kernel_width, BACKWARD=backward, **TILE, **OPTIONS,
        )  # fmt: skip


def _weight_gradient(x: Tensor, dy: Tensor, g: Geometry) -> Tensor:
    tile = _sum_tile(g.kernel_width)
    tiles = triton.cdiv(g.out_height * g.out_width, tile["PLACES"])
    shares = min(g.batch * tiles, SHARES)
    sums = x.new_empty(shares, g.kernel_height, g.kernel_width, g.channels, dtype=torch.float32)
    grid = (shares, triton.cdiv(g.channels, tile["CHANNELS"]), g.kernel_height)
    if sums.numel() and not sums.is_meta:
        sums_kernel[grid](
            x, dy, sums, g.height, g.width, g.out_height, g.out_width, g.channels, tiles, g.batch * tiles, g.stride, g.dilation,
            g.top, g.left, g.kernel_width, **tile, **OPTIONS,
        )  # fmt: skip
    return sums.sum(0)


def _sum_tile(kernel_width: int) -> dict[str, int]:
    """All taps of a row of the kernel at once, so that a gradient is read once for them."""
    taps = triton.next_power_of_2(kernel_width)
    return {"TAPS": taps, "PLACES": max(1, 64 // taps), "CHANNELS": 32}


@triton.jit
@no_type_check
def taps_kernel(
    source, weight, target, height, width, out_height, out_width, channels, tiles, stride, dilation, top, left,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BACKWARD: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """target[i, j] = sum of weight[u, v] source[s i + d u - p, s j + d v - p]; BACKWARD: of source[(i + p - d u) / s, ...],
    where that is whole. ``height`` and ``width`` are those of the source."""
    # 64-bit addresses for the image, 32-bit distances within it.
    image = (tl.program_id(0) // tiles).to(tl.int64)
    source += image * height * width * channels
    target += image * out_height * out_width * channels
    place = tl.program_id(0) % tiles * PLACES + tl.arange(0, PLACES)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here, mine = place < out_height * out_width, c < channels
    i, j = place // out_width, place % out_width
    total = tl.zeros((PLACES, CHANNELS), tl.float32)
    for u in range(ROWS):
        row, within = _read(i, u, height, stride, dilation, top, BACKWARD)
        within &= here
        for v in range(COLUMNS):
            column, inside = _read(j, v, width, stride, dilation, left, BACKWARD)
            at = source + ((row * width + column) * channels)[:, None] + c[None, :]
            pixel = tl.load(at, mask=(within & inside)[:, None] & mine[None, :], other=0.0).to(tl.float32)
            tap = tl.load(weight + (u * COLUMNS + v) * channels + c, mask=mine, other=0.0).to(tl.float32)
            total += pixel * tap[None, :]
    out = target + (place * channels)[:, None] + c[None, :]
    tl.store(out, total.to(target.dtype.element_ty), mask=here[:, None] & mine[None, :])


@triton.jit
@no_type_check
def _read(index, tap, size, stride, dilation, pad, BACKWARD: tl.constexpr):
    """Where a place reads with a tap, along one axis, and whether there is anything to read."""
    if BACKWARD:
        scaled = index + pad - tap * dilation
        found = scaled // stride
        return found, (scaled >= 0) & (found * stride == scaled) & (found < size)
    found = index * stride + tap * dilation - pad
    return found, (found >= 0) & (found < size)


@triton.jit
@no_type_check
def sums_kernel(
    x, dy, sums, height, width, out_height, out_width, channels, tiles, count, stride, dilation, top, left,
    COLUMNS: tl.constexpr, TAPS: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One row u of the kernel: sums[share, u, v, c] of dy[b, i, j, c] x[b, s i + d u - p, s j + d v - p, c] over every
    ``shares``-th of the ``count`` tiles, ``tiles`` of which make up an image."""
    share, shares, u = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    v, c = tl.arange(0, TAPS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mine, shift = (c < channels)[None, None, :], v[None, :] * dilation - left
    total = tl.zeros((PLACES, TAPS, CHANNELS), tl.float32)
    for tile in range(share, count, shares):
        image = (tile // tiles).to(tl.int64)
        place = tile % tiles * PLACES + tl.arange(0, PLACES)
        i, j = (place // out_width)[:, None], (place % out_width)[:, None]
        here = (place < out_height * out_width)[:, None]
        row, column = i * stride + u * dilation - top, j * stride + shift
        inside = here & (row >= 0) & (row < height) & (column >= 0) & (column < width) & (v < COLUMNS)[None, :]
        pixels = x + image * height * width * channels + ((row * width + column) * channels)[:, :, None] + c[None, None, :]
        seeds = dy + image * out_height * out_width * channels + (place * channels)[:, None, None] + c[None, None, :]
        seed = tl.load(seeds, mask=here[:, :, None] & mine, other=0.0).to(tl.float32)
        total += seed * tl.load(pixels, mask=inside[:, :, None] & mine, other=0.0).to(tl.float32)
    at = sums + ((share * tl.num_programs(2) + u).to(tl.int64) * COLUMNS + v)[:, None] * channels + c[None, :]
    tl.store(at, tl.sum(total, 0), mask=(v < COLUMNS)[:, None] & (c < channels)[None, :])


def shipped() -> Iterator[Shipped]:
    """A stride and a dilation of 1 are compiled in, as Triton does by itself at a launch; with "any" they are arguments."""
    ones = {"stride": 1, "dilation": 1}
    sizes = [(5, "fp32", ones), (3, "fp32", ones), (7, "fp32", ones), (3, "bf16", ones), (7, "fp16", ones)]
    for kernel, kind, steps in [*sizes, (3, "fp32", {}), (7, "bf16", {})]:
        name = f"k{kernel}-s{steps.get('stride', 'any')}-{kind}"
        for form, backward in (("forward", False), ("input-gradient", True)):
            constants = steps | {"ROWS": kernel, "COLUMNS": kernel, "BACKWARD": backward, **TILE}
            yield _shipped(f"{form}-{name}", taps_kernel, kind, constants)
        yield _shipped(f"weight-gradient-{name}", sums_kernel, kind, steps | {"COLUMNS": kernel, **_sum_tile(kernel)})


def _shipped(name: str, kernel: Any, kind: str, constants: dict[str, Any]) -> Shipped:
    types = dict.fromkeys(("source", "weight", "target", "x", "dy"), f"*{kind}") | {"sums": "*fp32"}
    signature = {x: "constexpr" if x in constants else types.get(x, "i32") for x in kernel.arg_names}
    return Shipped(name, kernel, signature, constants, OPTIONS)
