"""PyTorch: on the CPU compiled loops over rows, elsewhere and under tracing whole-array operations; the same bits."""

from __future__ import annotations

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from common.ops import readable

from . import compiled


def shiftmax(x: Int[Tensor, "*rows count"], *, unit: int, n: int = 15, bits: int = 16) -> Int[Tensor, "*rows count"]:
    dtype = torch.int16 if bits == 16 else torch.int8
    if readable(x) and x.numel():
        return compiled.shiftmax(x, unit, n, bits, dtype)
    x = x.to(torch.int32)
    e = _shift_exp(x - x.amax(-1, keepdim=True), unit, n)
    factor = _divided(torch.full_like(e[..., :1], 2**31 - 1), e.sum(-1, keepdim=True, dtype=torch.int32))
    return torch.bitwise_right_shift(e * factor, 32 - bits).to(dtype)


def shift_gelu(
    x: Int[Tensor, "*rows count"], *, unit: int, n: int = 23, wide: bool = False, shifts: bool = False
) -> Int32[Tensor, "*rows count"]:
    if readable(x) and x.numel() and x.dtype == torch.int8:
        return compiled.shift_gelu(x, unit, n, wide, shifts)
    return gelu_by_arrays(x, unit, n, wide, shifts)


def gelu_by_arrays(x: Tensor, unit: int, n: int, wide: bool, shifts: bool) -> Tensor:
    """The whole-array form; also fills the table of the compiled one."""
    x = x.to(torch.int64 if wide else torch.int32)
    if x.numel() == 0:
        return x.to(torch.int32)
    most = x.amax(-1, keepdim=True).clamp(min=0)
    below, minus = x - most, -most
    if shifts:
        below, minus = (a + (a >> 1) + (a >> 3) + (a >> 4) for a in (below, minus))
    first, second = _shift_exp(below, unit, n), _shift_exp(minus, unit, n)
    bits = 62 if wide else 31
    factor = _divided(torch.full_like(first, 2**bits - 1), first + second)
    return (x * torch.bitwise_right_shift(first * factor, bits - 7)).to(torch.int32)


def i_layernorm(x: Int[Tensor, "*rows count"], *, steps: int = 10) -> Int32[Tensor, "*rows count"]:
    if readable(x) and x.numel():
        return compiled.i_layernorm(x, steps)
    x, count = x.to(torch.int64), x.shape[-1]
    d = x - _divided(2 * x.sum(-1, keepdim=True) + count, torch.full_like(x[..., :1], 2 * count))
    v = (d * d).sum(-1, keepdim=True)
    k = torch.full_like(v, 2**16)
    for _ in range(steps):
        k = torch.bitwise_right_shift(k + _divided(v, k), 1)
    return torch.bitwise_right_shift(d * _divided(torch.full_like(k, 2**31 - 1), k), 1).to(torch.int32)


def _shift_exp(x: Tensor, unit: int, n: int) -> Tensor:
    x = (x + (x >> 1) - (x >> 4)).clamp(min=-n * unit)
    q = _divided(-x, torch.full_like(x, unit))
    t = x + q * unit + 2 * unit
    # t 2^(n - q) has one bit more than an exponential; shifted at once it stays in the word.
    up = torch.bitwise_left_shift(t, (n - q - 1).clamp(min=0))
    return torch.where(q < n, up, t >> 1)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")
