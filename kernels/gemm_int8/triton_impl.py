"""Triton: one program makes a tile of the product in 32 bits and ends with the epilogue that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int, Int8, Int32
from torch import Tensor

from common.ops import Shipped

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
OPTIONS = {"num_warps": 4, "num_stages": 3}
RAW, DYADIC, SCALED = 0, 1, 2
DTYPES = {4: torch.int8, 8: torch.int8, 16: torch.int16, 32: torch.int32}
_ROWS = 1024


def matmul_int8(
    x: Int8[Tensor, "*rows inner"], weight: Int8[Tensor, "outer inner"], bias: Int32[Tensor, " outer"] | None = None
) -> Int32[Tensor, "*rows outer"]:
    return _launch(x, weight, bias, None, None, RAW, 32, torch.int32)


def matmul_int8_dyadic(
    x: Int8[Tensor, "*rows inner"],
    weight: Int8[Tensor, "outer inner"],
    bias: Int32[Tensor, " outer"] | None,
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    *,
    bits: int = 8,
) -> Int[Tensor, "*rows outer"]:
    outer = weight.shape[0]
    return _launch(x, weight, bias, multiplier.expand(outer), shift.expand(outer), DYADIC, bits, DTYPES[bits])


def matmul_int8_scaled(
    x: Int8[Tensor, "*rows inner"],
    weight: Int8[Tensor, "outer inner"],
    x_scale: Float[Tensor, "*some"],
    weight_scale: Float[Tensor, " scales"],
    bias: Float[Tensor, " outer"] | None = None,
) -> Float[Tensor, "*rows outer"]:
    rows = x_scale.expand(*x.shape[:-1], 1).reshape(-1)
    return _launch(x, weight, bias, rows, weight_scale.expand(weight.shape[0]), SCALED, 32, torch.float32)


def requantise(
    x: Int[Tensor, "*rows channel"],
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    *,
    bits: int = 8,
) -> Int[Tensor, "*rows channel"]:
    channels = x.shape[-1]
    out = torch.empty(x.shape, dtype=DTYPES[bits], device=x.device)
    if out.numel() and not out.is_meta:
        m, e = (each.expand(channels).contiguous() for each in (multiplier, shift))
        grid = (triton.cdiv(out.numel(), _ROWS),)
        requantise_kernel[grid](x.contiguous(), m, e, out, out.numel(), channels, bits, _ROWS, num_warps=4, num_stages=1)
    return out


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    first: Tensor | None,
    second: Tensor | None,
    epilogue: int,
    bits: int,
    dtype: Any,
) -> Tensor:
    (outer, inner), rows = weight.shape, x.shape[:-1]
    more = -inner % TILE["BLOCK_K"]
    flat = F.pad(x.reshape(-1, inner), (0, more)).contiguous() if more else x.reshape(-1, inner).contiguous()
    weight = F.pad(weight, (0, more)).contiguous() if more else weight.contiguous()
    out = torch.empty((*rows, outer), dtype=dtype, device=x.device)
    if out.numel() == 0 or out.is_meta:
        return out
    # An argument that is not used still needs a pointer.
    unused = torch.zeros(1, dtype=torch.float32 if epilogue == SCALED else torch.int32, device=x.device)
    several = [unused if each is None else each.contiguous() for each in (bias, first, second)]
    grid = (triton.cdiv(len(flat), TILE["BLOCK_M"]), triton.cdiv(outer, TILE["BLOCK_N"]))
    matmul_kernel[grid](
        flat,
        weight,
        *several,
        out,
        len(flat),
        outer,
        (inner + more) // TILE["BLOCK_K"],
        bias is not None,
        epilogue,
        bits,
        **TILE,
        **OPTIONS,
    )
    return out


@triton.jit
@no_type_check
def matmul_kernel(
    x, weight, bias, first, second, out, rows, outer, steps,
    HAS_BIAS: tl.constexpr, EPILOGUE: tl.constexpr, BITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # 64-bit addresses once for each program, 32-bit distances within its tile.
    top, left = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.program_id(1).to(tl.int64) * BLOCK_N
    down, across, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    i, o = top + down, left + across
    # The inner axis comes filled with zeros to whole steps, so that 16 bytes are loaded at once and no load is cut.
    inner = steps * BLOCK_K
    x_at = x + top * inner + (down[:, None] * inner + k[None, :])
    weight_at = weight + left * inner + (across[None, :] * inner + k[:, None])
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, inner, BLOCK_K):
        a = tl.load(x_at + start, mask=i[:, None] < rows, other=0)
        b = tl.load(weight_at + start, mask=o[None, :] < outer, other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    inside = (i[:, None] < rows) & (o[None, :] < outer)
    if EPILOGUE == 2:
        y = total.to(tl.float32) * tl.load(first + i, mask=i < rows, other=1.0)[:, None]
        y = y * tl.load(second + o, mask=o < outer, other=1.0)[None, :]
        if HAS_BIAS:
            y += tl.load(bias + o, mask=o < outer, other=0.0)[None, :]
    else:
        y = total
        if HAS_BIAS:
            y += tl.load(bias + o, mask=o < outer, other=0)[None, :]
        if EPILOGUE == 1:
            m = tl.load(first + o, mask=o < outer, other=0)[None, :]
            y = rescaled(y, m, tl.load(second + o, mask=o < outer, other=0)[None, :], BITS)
    tl.store(out + i[:, None] * outer + o[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def requantise_kernel(x, multiplier, shift, out, count, channels, BITS: tl.constexpr, ROWS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, channel = place < count, place % channels
    m, e = tl.load(multiplier + channel, mask=inside, other=0), tl.load(shift + channel, mask=inside, other=0)
    y = rescaled(tl.load(x + place, mask=inside, other=0), m, e, BITS)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def rescaled(x, m, e, BITS: tl.constexpr):
    wide = e.to(tl.int64)
    half = (tl.full(e.shape, 1, tl.int64) << wide) >> 1
    y = (x.to(tl.int64) * m.to(tl.int64) + half) >> wide
    limit = tl.full(y.shape, 1, tl.int64) << (BITS - 1)
    return tl.minimum(tl.maximum(y, -limit), limit - 1)


def shipped() -> Iterator[Shipped]:
    pointers = {
        RAW: ("*i32", "*i32", "*i32", "*i32"), DYADIC: ("*i32", "*i32", "*i32", "*i8"), SCALED: ("*fp32", "*fp32", "*fp32", "*fp32"),
    }  # fmt: skip
    for name, epilogue, bits in (("dyadic", DYADIC, 8), ("dyadic-16", DYADIC, 16), ("raw", RAW, 32), ("scaled", SCALED, 32)):
        constants = {"HAS_BIAS": True, "EPILOGUE": epilogue, "BITS": bits, **TILE}
        kinds = ["*i8", "*i8", *pointers[epilogue][:3], "*i16" if bits == 16 else pointers[epilogue][3], "i32", "i32", "i32"]
        signature = dict(zip(matmul_kernel.arg_names, [*kinds, *["constexpr"] * len(constants)], strict=True))
        yield Shipped(f"matmul-{name}", matmul_kernel, signature, constants, OPTIONS)
    signature = {"x": "*i32", "multiplier": "*i32", "shift": "*i32", "out": "*i8", "count": "i32", "channels": "i32"}
    constants = {"BITS": 8, "ROWS": _ROWS}
    whole = {**signature, **dict.fromkeys(constants, "constexpr")}
    yield Shipped("requantise", requantise_kernel, whole, constants, {"num_warps": 4, "num_stages": 1})
