"""Triton: a tile of bytes becomes two tiles of weights in registers, which go straight into products.

The even and the odd features of a row stand in the high and the low halves of the bytes. They are never woven together:
y = x_even W_even^T + x_odd W_odd^T, and dx_even = dy W_even, dx_odd = dy W_odd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped

ROWS, COLUMNS, BYTES = 16, 32, 16
"""Of a program: rows of x, rows of W, and bytes of each at a time, which is 32 weights and thus within one block."""
OPTIONS = {"num_warps": 4, "num_stages": 2}


def matmul_nf4(
    x: Float[Tensor, "*batch k"],
    packed: UInt8[Tensor, "n half"],
    absmax: Float[Tensor, " blocks"],
    code: Float[Tensor, " 16"],
    *,
    block: int = 64,
) -> Float[Tensor, "*batch n"]:
    if x.dtype == torch.float64:
        raise ValueError("matmul_nf4: backend 'triton' computes in float32, got float64; use backend='torch'")
    return _Product.apply(x, packed.contiguous(), absmax.contiguous(), code.contiguous(), block)


class _Product(torch.autograd.Function):
    """Keeps the bytes and the scales; the backward makes the tiles again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, absmax: Tensor, code: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(packed, absmax, code)
        ctx.block = block
        y = x.new_zeros(*x.shape[:-1], packed.shape[0])
        _launch(forward_kernel, x.contiguous(), packed, absmax, code, y, block, packed.shape[0], COLUMNS)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        packed, absmax, code = ctx.saved_tensors
        dx = dy.new_zeros(*dy.shape[:-1], 2 * packed.shape[1])
        _launch(backward_kernel, dx, packed, absmax, code, dy.contiguous(), ctx.block, packed.shape[1], BYTES)
        return dx, None, None, None, None


def _launch(
    kernel: Any, x: Tensor, packed: Tensor, absmax: Tensor, code: Tensor, y: Tensor, block: int, across: int, each: int
) -> None:
    """x, or dx, has k features and y, or dy, n; a program owns ``each`` of the ``across`` columns that are written."""
    n, half = packed.shape
    m = x.numel() // max(1, x.shape[-1])
    if 0 in (m, n, half) or x.is_meta:
        return
    grid = (triton.cdiv(m, ROWS), triton.cdiv(across, each))
    aligned = 2 * half % block == 0
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    kernel[grid](x, packed, absmax, code, y, m, n, half, block, aligned, ROWS, COLUMNS, BYTES, precision, **OPTIONS)


@triton.jit
@no_type_check
def forward_kernel(
    x, packed, absmax, code, y, m, n, half, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BYTES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, half, BYTES):
        byte = start + tl.arange(0, BYTES)
        even, odd = _weights(packed, absmax, code, column, byte, n, half, BLOCK, ALIGNED, x.dtype.element_ty)
        source = x + (row[:, None] * half + byte[None, :]) * 2
        inside = (row < m)[:, None] & (byte < half)[None, :]
        found = tl.dot(tl.load(source, mask=inside, other=0.0), tl.trans(even), found, input_precision=PRECISION)
        found = tl.dot(tl.load(source + 1, mask=inside, other=0.0), tl.trans(odd), found, input_precision=PRECISION)
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(y + row[:, None] * n + column[None, :], found.to(y.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def backward_kernel(
    dx, packed, absmax, code, dy, m, n, half, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BYTES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.program_id(1).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    even_sum, odd_sum = tl.zeros((ROWS, BYTES), tl.float32), tl.zeros((ROWS, BYTES), tl.float32)
    for start in range(0, n, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        even, odd = _weights(packed, absmax, code, column, byte, n, half, BLOCK, ALIGNED, dy.dtype.element_ty)
        inside = (row < m)[:, None] & (column < n)[None, :]
        seed = tl.load(dy + row[:, None] * n + column[None, :], mask=inside, other=0.0)
        even_sum = tl.dot(seed, even, even_sum, input_precision=PRECISION)
        odd_sum = tl.dot(seed, odd, odd_sum, input_precision=PRECISION)
    target = dx + (row[:, None] * half + byte[None, :]) * 2
    inside = (row < m)[:, None] & (byte < half)[None, :]
    tl.store(target, even_sum.to(dx.dtype.element_ty), mask=inside)
    tl.store(target + 1, odd_sum.to(dx.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _weights(packed, absmax, code, column, byte, n, half, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, KIND: tl.constexpr):
    """Two tiles (rows of W, bytes): the even and the odd features, scaled, zero outside."""
    inside = (column < n)[:, None] & (byte < half)[None, :]
    place = column[:, None] * half + byte[None, :]
    pair = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
    if ALIGNED:
        # A row is whole blocks, and these bytes lie within one of them: a single scale for each row.
        scale = tl.load(absmax + (column * half + tl.min(byte, 0)) * 2 // BLOCK, mask=column < n, other=0.0)[:, None]
    else:
        scale = tl.load(absmax + place * 2 // BLOCK, mask=inside, other=0.0)
    even, odd = _value(code, pair >> 4) * scale, _value(code, pair & 15) * scale
    return tl.where(inside, even, 0.0).to(KIND), tl.where(inside, odd, 0.0).to(KIND)


@triton.jit
@no_type_check
def _value(code, index):
    """code[index] from 16 registers by four choices, no memory."""
    b3, b2, b1, b0 = (index & 8) != 0, (index & 4) != 0, (index & 2) != 0, (index & 1) != 0
    low = tl.where(b2, _four(code + 4, b1, b0), _four(code, b1, b0))
    high = tl.where(b2, _four(code + 12, b1, b0), _four(code + 8, b1, b0))
    return tl.where(b3, high, low)


@triton.jit
@no_type_check
def _four(code, b1, b0):
    first, second = tl.where(b0, tl.load(code + 1), tl.load(code)), tl.where(b0, tl.load(code + 3), tl.load(code + 2))
    return tl.where(b1, second, first)


def shipped() -> Iterator[Shipped]:
    for kind, precision in (("bf16", "tf32"), ("fp32", "ieee")):
        for aligned in (True, False):
            for kernel in (forward_kernel, backward_kernel):
                constants = {
                    "BLOCK": 64,
                    "ALIGNED": aligned,
                    "ROWS": ROWS,
                    "COLUMNS": COLUMNS,
                    "BYTES": BYTES,
                    "PRECISION": precision,
                }
                types = {"packed": "*u8", "absmax": "*fp32", "code": "*fp32", "m": "i32", "n": "i32", "half": "i32"}
                signature = {name: "constexpr" if name in constants else types.get(name, f"*{kind}") for name in kernel.arg_names}
                form = f"{kernel.__name__.removesuffix('_kernel')}-{kind}{'' if aligned else '-crossing'}"
                yield Shipped(form, kernel, signature, constants, OPTIONS)
