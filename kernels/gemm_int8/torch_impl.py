"""PyTorch: torch's own int8 product; on the CPU the rescaling is one compiled pass, elsewhere and under tracing plain
64-bit operations. All are exact, so all give the same bits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int8, Int32
from torch import Tensor

from common.ops import readable

from . import compiled

DTYPES = {4: torch.int8, 8: torch.int8, 16: torch.int16, 32: torch.int32}


def matmul_int8(
    x: Int8[Tensor, "*rows inner"], weight: Int8[Tensor, "outer inner"], bias: Int32[Tensor, " outer"] | None = None
) -> Int32[Tensor, "*rows outer"]:
    y = _product(x, weight)
    return y if bias is None else y + bias


def matmul_int8_dyadic(
    x: Int8[Tensor, "*rows inner"],
    weight: Int8[Tensor, "outer inner"],
    bias: Int32[Tensor, " outer"] | None,
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    *,
    bits: int = 8,
) -> Int[Tensor, "*rows outer"]:
    if readable(x) and x.numel() and min(weight.shape) > 1:
        rows = x.reshape(-1, x.shape[-1])
        y = compiled.matmul_dyadic(rows, weight, bias, multiplier, shift, bits, DTYPES[bits])
        return y.view(*x.shape[:-1], weight.shape[0])
    y = _product(x, weight)
    return requantise(y if bias is None else y + bias, multiplier, shift, bits=bits)


def matmul_int8_scaled(
    x: Int8[Tensor, "*rows inner"],
    weight: Int8[Tensor, "outer inner"],
    x_scale: Float[Tensor, "*some"],
    weight_scale: Float[Tensor, " scales"],
    bias: Float[Tensor, " outer"] | None = None,
) -> Float[Tensor, "*rows outer"]:
    y = _product(x, weight).to(torch.float32).mul_(x_scale).mul_(weight_scale)
    return y if bias is None else y.add_(bias)


def requantise(
    x: Int[Tensor, "*rows channel"],
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    *,
    bits: int = 8,
) -> Int[Tensor, "*rows channel"]:
    if readable(x):
        return compiled.requantise(x.to(torch.int32), multiplier, shift, bits, DTYPES[bits])
    shift = shift.to(torch.int64)
    half = torch.bitwise_right_shift(torch.bitwise_left_shift(torch.ones_like(shift), shift), 1)
    y = torch.bitwise_right_shift(x.to(torch.int64) * multiplier.to(torch.int64) + half, shift)
    return y.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(DTYPES[bits])


def _product(x: Tensor, weight: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 0 or 0 in weight.shape:
        return torch.zeros(*x.shape[:-1], weight.shape[0], dtype=torch.int32, device=x.device)
    # CUDA's int8 product wants more than 16 rows and multiples of 8; what does not fit is padded with zeros.
    if x.device.type == "cuda":
        more = (max(17 - len(rows), 0), -rows.shape[1] % 8, -weight.shape[0] % 8)
        padded = torch.nn.functional.pad(rows, (0, more[1], 0, more[0]))
        y = torch._int_mm(padded, torch.nn.functional.pad(weight, (0, more[1], 0, more[2])).t())
        y = y[: len(rows), : weight.shape[0]]
    elif rows.shape[1] == 1:
        # torch 2.13 takes the strides of a transposed single column for another layout, and multiplies wrongly.
        y = rows.to(torch.int32) * weight[:, 0].to(torch.int32)
    else:
        y = torch._int_mm(rows, weight.t())
    return y.reshape(*x.shape[:-1], weight.shape[0])
