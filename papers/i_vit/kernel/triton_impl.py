"""Triton: a row a program, all of it in registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Int, Int32
from torch import Tensor

from common.ops import Shipped

OPTIONS = {"num_warps": 4, "num_stages": 1}


def shiftmax(x: Int[Tensor, "*rows count"], *, unit: int, n: int = 15, bits: int = 16) -> Int[Tensor, "*rows count"]:
    return _launch(shiftmax_kernel, x, torch.int16 if bits == 16 else torch.int8, unit, n, bits)


def shift_gelu(
    x: Int[Tensor, "*rows count"], *, unit: int, n: int = 23, wide: bool = False, shifts: bool = False
) -> Int32[Tensor, "*rows count"]:
    return _launch(shift_gelu_kernel, x, torch.int32, unit, n, wide, shifts)


def i_layernorm(x: Int[Tensor, "*rows count"], *, steps: int = 10) -> Int32[Tensor, "*rows count"]:
    return _launch(i_layernorm_kernel, x, torch.int32, steps)


def _launch(kernel: Any, x: Tensor, dtype: torch.dtype, *options: Any) -> Tensor:
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if out.numel() and not out.is_meta:
        count = x.shape[-1]
        kernel[(out.numel() // count,)](x.contiguous(), out, count, *options, triton.next_power_of_2(count), **OPTIONS)
    return out


@triton.jit
@no_type_check
def shiftmax_kernel(x, out, count, unit, N: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr):
    place, inside = _row(count, WIDTH)
    row = tl.load(x + place, mask=inside, other=0).to(tl.int32)
    row = tl.where(inside, row, -(1 << 29))
    e = tl.where(inside, shift_exp(row - tl.max(row, 0), unit, N), 0)
    factor = 2147483647 // tl.sum(e, 0)
    tl.store(out + place, ((e * factor) >> (32 - BITS)).to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def shift_gelu_kernel(x, out, count, unit, N: tl.constexpr, WIDE: tl.constexpr, SHIFTS: tl.constexpr, WIDTH: tl.constexpr):
    place, inside = _row(count, WIDTH)
    row = tl.load(x + place, mask=inside, other=0).to(tl.int64 if WIDE else tl.int32)
    most = tl.maximum(tl.max(row, 0), 0)
    below, minus = row - most, tl.zeros_like(row) - most
    if SHIFTS:
        below = below + (below >> 1) + (below >> 3) + (below >> 4)
        minus = minus + (minus >> 1) + (minus >> 3) + (minus >> 4)
    first, second = shift_exp(below, unit, N), shift_exp(minus, unit, N)
    if WIDE:
        limit = (tl.full(first.shape, 1, tl.int64) << 62) - 1
        sigmoid = (first * (limit // (first + second))) >> 55
    else:
        sigmoid = (first * (tl.full(first.shape, 2147483647, tl.int32) // (first + second))) >> 24
    tl.store(out + place, (row * sigmoid).to(tl.int32), mask=inside)


@triton.jit
@no_type_check
def i_layernorm_kernel(x, out, count, STEPS: tl.constexpr, WIDTH: tl.constexpr):
    place, inside = _row(count, WIDTH)
    row = tl.load(x + place, mask=inside, other=0).to(tl.int64)
    total = 2 * tl.sum(row, 0) + count
    mean = total // (2 * count)
    # Division truncates on a device.
    mean = tl.where(mean * (2 * count) > total, mean - 1, mean)
    d = tl.where(inside, row - mean, 0)
    v = tl.sum(d * d, 0)
    k = tl.full((), 65536, tl.int64)
    for _ in tl.static_range(STEPS):
        k = (k + v // k) >> 1
    factor = tl.full((), 2147483647, tl.int64) // k
    tl.store(out + place, ((d * factor) >> 1).to(tl.int32), mask=inside)


@triton.jit
@no_type_check
def _row(count, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    return tl.program_id(0).to(tl.int64) * count + column, column < count


@triton.jit
@no_type_check
def shift_exp(x, unit, N: tl.constexpr):
    x = tl.maximum(x + (x >> 1) - (x >> 4), -N * unit)
    q = (0 - x) // unit
    t = x + q * unit + 2 * unit
    return tl.where(q < N, t << tl.maximum(N - 1 - q, 0), t >> 1)


def shipped() -> Iterator[Shipped]:
    kernels = (
        ("shiftmax", shiftmax_kernel, "*i8", "*i16", {"N": 15, "BITS": 16, "WIDTH": 256}),
        ("shift_gelu", shift_gelu_kernel, "*i8", "*i32", {"N": 16, "WIDE": False, "SHIFTS": False, "WIDTH": 2048}),
        ("shift_gelu-wide", shift_gelu_kernel, "*i8", "*i32", {"N": 40, "WIDE": True, "SHIFTS": True, "WIDTH": 2048}),
        ("i_layernorm", i_layernorm_kernel, "*i16", "*i32", {"STEPS": 10, "WIDTH": 512}),
    )
    for name, kernel, source, target, constants in kernels:
        kinds = {"x": source, "out": target, "count": "i32", "unit": "i32"}
        signature = {each: kinds.get(each, "constexpr") for each in kernel.arg_names}
        yield Shipped(name, kernel, signature, constants, OPTIONS)
