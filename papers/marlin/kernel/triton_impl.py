"""Triton: the striped kernel of :mod:`kernels.gemm_w4a16.triton_impl` over 2:4 weights.

A word holds two kept weights of a group of four for each half of a tile and each ``block`` of columns. For each of the four places a
matrix has the one that stands there, or zero; the rows of x are cut by place beforehand. Triton cannot say mma.sp, so these
products are dense: the words and places that are read are the sparse ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from einops import rearrange
from jaxtyping import Float, Int16, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped
from kernels.gemm_w4a16.triton_impl import Tile, hand_over, multiprocessors, own_locks, weights

from . import torch_impl
from .layout import ROWS


def tile_for(m: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(16, 128, 64, 8, 2)
    return Tile(16, 128, 128, 8, 4) if m <= 16 else Tile(64, 128, 128, 8, 2)


def sparse_matmul(
    x: Float[Tensor, "*batch k"],
    values: Int32[Tensor, "tiles words"],
    meta: Int16[Tensor, "tiles words"],
    scales: Float[Tensor, "groups n"],
    *,
    group: int = 128,
    blocks: int | None = None,
) -> Float[Tensor, "*batch n"]:
    """``blocks``: programs in the grid, at most one for each multiprocessor; tests take others."""
    if x.dtype == torch.float64:
        raise ValueError("sparse_matmul: backend 'triton' computes in float32, got float64; use backend='torch'")
    return _Product.apply(x, values.contiguous(), meta.contiguous(), scales.contiguous(), blocks)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, meta: Tensor, scales: Tensor, blocks: int | None) -> Tensor:
        ctx.save_for_backward(values, meta, scales)
        n = values.shape[1] // 2
        y = x.new_empty(*x.shape[:-1], n)
        if y.numel() and not y.is_meta:
            launch(x.reshape(-1, x.shape[-1]), values, meta, scales, y.view(-1, n), blocks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return torch_impl.backward(dy, *ctx.saved_tensors), None, None, None, None


def launch(x: Tensor, values: Tensor, meta: Tensor, scales: Tensor, y: Tensor, blocks: int | None = None) -> None:
    (m, k), n = x.shape, y.shape[1]
    tile = tile_for(m, x.dtype)
    columns = triton.cdiv(m, tile.m) * (n // tile.n)
    total = columns * (k // tile.k)
    each = triton.cdiv(total, blocks or multiprocessors(x.device))
    parts = rearrange(x, f"m {ROWS} -> (half place) m (tile pair)", half=2, pair=4, place=4).contiguous()
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    sparse_kernel[(triton.cdiv(total, each),)](
        parts, values, meta.view(torch.int32), scales, y, own_locks(x.device, columns), m, n // 256, k // 128, each,
        len(scales) == 1, tile.m, tile.k, tile.n, precision, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
@no_type_check
def sparse_kernel(
    parts, values, meta, scales, y, locks, m, strips, groups, each, SINGLE: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kind = parts.dtype.element_ty
    n, k = strips * 256, groups * 128
    high, across = k // K, n // N
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    tile = block * each
    end = tl.minimum(tile + each, high * across * tl.cdiv(m, M))
    # Rows (tile, pair) and columns (strip, c, j) of the matrices in a word.
    row, lane = tl.arange(0, K // 8), tl.arange(0, N // 2)
    strip, c, j = lane // 32, lane // 4 % 8, lane % 4
    word = (row // 4)[:, None] * (2 * n) + (row % 4)[:, None] * 4 + (strip * 128 + c * 16 + j)[None, :]
    place = (row // 4)[:, None] * n + (strip * 64 + j // 2 * 32 + c * 4 + j % 2 * 2)[None, :]
    shift = (row % 4 * 4)[:, None]
    if SINGLE:
        factor = strip * 64 + c * 8 + j
        step = 4
    else:
        factor = strip * 64 + c * 8 + j * 2
        step = 1
    while tile < end:
        column, first = tile // high, tile % high
        last = tl.minimum(high, first + end - tile)
        rows = column // across * M + tl.arange(0, M)
        start = tl.cast(column % across, tl.int64) * N
        inside = (rows < m)[:, None]
        source = parts + tl.cast(rows, tl.int64)[:, None] * (k // 8) + row[None, :]
        part = tl.cast(m, tl.int64) * (k // 8)
        zero, one = tl.zeros((M, N // 2), tl.float32), tl.zeros((M, N // 2), tl.float32)
        for at in tl.range(first, last):
            deep = tl.cast(at, tl.int64) * (K // 32)
            w = tl.load(values + deep * 2 * n + start * 2 + word, eviction_policy="evict_first")
            if SINGLE:
                s0, s1 = 1.0, 1.0
            else:
                group = scales + tl.cast(at * K // 128, tl.int64) * n + start + factor
                s0, s1 = tl.load(group)[None, :], tl.load(group + step)[None, :]
            for half in tl.static_range(2):
                where = tl.load(meta + deep * n + start + place + half, eviction_policy="evict_first")
                below, above = where >> shift, where >> (shift + 16)
                a, b = weights(w, half, s0, SINGLE, kind), weights(w, 4 + half, s0, SINGLE, kind)
                c0, d0 = weights(w, 2 + half, s1, SINGLE, kind), weights(w, 6 + half, s1, SINGLE, kind)
                for at_place in tl.static_range(4):
                    here = source + (4 * half + at_place) * part + at * (K // 8)
                    x = tl.load(here, mask=inside, other=0.0)
                    zero = tl.dot(x, _standing(a, b, below, at_place), zero, input_precision=PRECISION)
                    one = tl.dot(x, _standing(c0, d0, above, at_place), one, input_precision=PRECISION)
        if SINGLE:
            zero *= tl.load(scales + start + factor)[None, :].to(tl.float32)
            one *= tl.load(scales + start + factor + step)[None, :].to(tl.float32)
        target = y + tl.cast(rows, tl.int64)[:, None] * n + (start + strip * 64 + c * 8 + j)[None, :]
        hand_over(zero, one, target, target + 4, inside, locks + column, column, first, last, high, each, block)
        tile += last - first


@triton.jit
@no_type_check
def _standing(a, b, where, PLACE: tl.constexpr):
    """The one of two kept weights whose place this is, or zero."""
    return tl.where((where & 3) == PLACE, a, tl.where((where >> 2 & 3) == PLACE, b, 0.0))


def shipped() -> Iterator[Shipped]:
    types = {"values": "*i32", "meta": "*i32", "locks": "*i32", "m": "i32", "strips": "i32", "groups": "i32", "each": "i32"}
    for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for m in (16,) if kind == "fp32" else (16, 64):
            for single in (False, True) if kind == "fp16" else (False,):
                tile = tile_for(m, dtype)
                precision = "ieee" if kind == "fp32" else "tf32"
                constants = {"SINGLE": single, "M": tile.m, "K": tile.k, "N": tile.n, "PRECISION": precision}
                signature = {
                    each: "constexpr" if each in constants else types.get(each, f"*{kind}") for each in sparse_kernel.arg_names
                }
                options = {"num_warps": tile.warps, "num_stages": tile.stages}
                yield Shipped(f"sparse-{kind}-m{m}{'-columns' if single else ''}", sparse_kernel, signature, constants, options)
