"""Triton: one program takes whole blocks; the place in the code book is found by halving, with loads that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from common.ops import Shipped

OPTIONS = {"num_warps": 8, "num_stages": 1}
ELEMENTS = 4096
"""Of one program."""


def quantize_blockwise(
    x: Float[Tensor, "*shape"], code: Float32[Tensor, " size"], *, block: int = 64
) -> tuple[UInt8[Tensor, " count"], Float32[Tensor, " blocks"]]:
    flat = x.detach().reshape(-1)
    count, blocks = flat.numel(), -(-flat.numel() // block)
    indices, absmax = flat.new_empty(count, dtype=torch.uint8), flat.new_empty(blocks, dtype=torch.float32)
    half = 1 << ((code.numel() - 1).bit_length() - 1)
    tree = code.new_full((2 * half,), torch.inf)
    tree[: code.numel() - 1] = (code[1:] + code[:-1]) / 2
    _launch(quantize_kernel, block, flat, tree, indices, absmax, count, block, HALF=half)
    return indices, absmax


def dequantize_blockwise(
    indices: UInt8[Tensor, " count"],
    absmax: Float32[Tensor, " blocks"],
    code: Float32[Tensor, " size"],
    *,
    block: int = 64,
) -> Float32[Tensor, " count"]:
    out = indices.new_empty(indices.shape, dtype=torch.float32)
    indices, absmax = indices.contiguous(), absmax.contiguous()
    _launch(dequantize_kernel, block, indices, absmax, code.contiguous(), out, out.numel(), code.numel(), block)
    return out


def _launch(kernel: Any, block: int, first: Tensor, *arguments: Any, **constants: Any) -> None:
    rows = ELEMENTS // block
    programs = triton.cdiv(first.numel(), ELEMENTS)
    if programs and not first.is_meta:
        kernel[(programs,)](first, *arguments, ROWS=rows, **constants, **OPTIONS)


@triton.jit
@no_type_check
def quantize_kernel(x, tree, indices, absmax, count, BLOCK: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32)
    # A maximum may drop NaN; as infinity it stays, and the caller sees it.
    scale = tl.max(tl.where(values == values, tl.abs(values), float("inf")), 1)
    scaled = values * tl.div_rn(1.0, tl.maximum(scale, 1.1754943508222875e-38))[:, None]
    found = tl.zeros((ROWS, BLOCK), tl.int32)
    for shift in tl.static_range(8):
        if HALF >> shift > 0:
            middle = tl.load(tree + found + ((HALF >> shift) - 1))
            found += tl.where(scaled > middle, HALF >> shift, 0)
    tl.store(indices + place, found.to(tl.uint8), mask=place < count)
    tl.store(absmax + row, scale, mask=row * BLOCK < count)


@triton.jit
@no_type_check
def dequantize_kernel(indices, absmax, code, out, count, size, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    found = tl.load(indices + place, mask=place < count, other=0).to(tl.int32)
    scale = tl.load(absmax + row, mask=row * BLOCK < count, other=0.0)
    value = tl.load(code + found, mask=found < size, other=0.0)
    tl.store(out + place, value * scale[:, None], mask=place < count)


def shipped() -> Iterator[Shipped]:
    types = {"indices": "*u8", "count": "i32", "size": "i32"}
    for block, half in ((64, 8), (256, 128), (4096, 128)):
        for dtype in ("fp32", "bf16") if block < 4096 else ("fp32",):
            yield _shipped(quantize_kernel, types | {"x": f"*{dtype}"}, block, f"half{half}-{dtype}", {"HALF": half})
        yield _shipped(dequantize_kernel, types, block, "fp32", {})


def _shipped(kernel: Any, types: dict[str, str], block: int, form: str, constants: dict[str, int]) -> Shipped:
    constants = constants | {"BLOCK": block, "ROWS": ELEMENTS // block}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    return Shipped(f"{kernel.__name__.removesuffix('_kernel')}-block{block}-{form}", kernel, signature, constants, OPTIONS)
