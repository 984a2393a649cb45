"""Triton: packed weights become tiles in registers, which go straight into products.

The four places of a group are never woven together: with the places as planes, y = sum over p of x_p W_p^T, and an entry of
the tile W_p is the stored number whose place is p, or zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from einops import rearrange
from jaxtyping import Bool, Float, Shaped, UInt16
from torch import Tensor

from common.ops import Shipped

ROWS, COLUMNS, GROUPS = 32, {2: 64, 4: 32}, 16
"""Of a program of the product: rows of x, rows of W by the bytes of a number of x, and groups of each at a time."""
BLOCK = 256
"""Words of a program of the others, each of which stands for four groups."""
OPTIONS = {"num_warps": 8, "num_stages": 2}
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def mask(weights: Shaped[Tensor, "rows k"], *, paired: bool = False) -> Bool[Tensor, "rows k"]:
    if weights.dtype == torch.float64:
        raise ValueError("mask: backend 'triton' computes in float32, got float64; use backend='torch'")
    kept = weights.new_empty(weights.shape, dtype=torch.bool)
    groups = weights.numel() // (8 if paired else 4)
    _launch(mask_kernel, groups, 4 * BLOCK, weights.detach().contiguous(), kept.view(torch.int8), groups, 1 + paired, 4 * BLOCK)
    return kept


def pack(
    weights: Shaped[Tensor, "rows k"], mask: Bool[Tensor, "rows k"], *, paired: bool = False
) -> tuple[Shaped[Tensor, "rows half"], UInt16[Tensor, "rows words"]]:
    rows, k = weights.shape
    values = weights.new_empty(rows, k // 2)
    groups = k // (8 if paired else 4)
    words = -(-groups // 4)
    meta = weights.new_empty(rows, words, dtype=torch.uint16)
    arrays = _bits(weights), mask.contiguous().view(torch.int8), _bits(values), meta
    _launch(pack_kernel, rows * words, BLOCK, *arrays, groups, words, rows * words, 1 + paired, BLOCK)
    return values, meta


def unpack(
    values: Shaped[Tensor, "rows half"], meta: UInt16[Tensor, "rows words"], *, k: int, paired: bool = False
) -> Shaped[Tensor, "rows k"]:
    rows, words = meta.shape
    weights = values.new_empty(rows, k)
    arrays = _bits(values), meta.contiguous(), _bits(weights)
    _launch(unpack_kernel, rows * words, BLOCK, *arrays, k // (8 if paired else 4), words, rows * words, 1 + paired, BLOCK)
    return weights


def matmul(
    x: Float[Tensor, "*batch k"],
    values: Shaped[Tensor, "rows stored"],
    meta: UInt16[Tensor, "rows words"],
    scale: Float[Tensor, " rows"] | None = None,
    *,
    paired: bool = False,
) -> Float[Tensor, "*batch rows"]:
    if x.dtype == torch.float64:
        raise ValueError("matmul: backend 'triton' computes in float32, got float64; use backend='torch'")
    unit, n = 1 + paired, values.shape[0]
    y = x.new_zeros(*x.shape[:-1], n)
    groups = x.shape[-1] // (4 * unit)
    m = y.numel() // max(n, 1)
    if 0 in (m, n, groups) or x.is_meta:
        return y
    # Planes: the reduction walks over neighbouring groups, whose entries of one place should be neighbours.
    planes = rearrange(x.detach().reshape(m, groups, 4 * unit), "row group place -> place row group").contiguous()
    columns = COLUMNS[x.element_size()]
    grid = (triton.cdiv(m, ROWS), triton.cdiv(n, columns))
    scale = y if scale is None else scale.contiguous()  # y stands for what is not read
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    arguments = planes, values.contiguous(), meta.contiguous(), scale, y, m, n, groups
    form = unit, values.dtype == torch.uint8, scale is not y
    matmul_kernel[grid](*arguments, *form, ROWS, columns, GROUPS, precision, **OPTIONS)
    return y


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(BITS[x.element_size()])


def _launch(kernel: Any, count: int, each: int, first: Tensor, *arguments: Any) -> None:
    if count and not first.is_meta:
        kernel[(triton.cdiv(count, each),)](first, *arguments, num_warps=4, num_stages=1)


@triton.jit
@no_type_check
def mask_kernel(weights, kept, groups, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = group < groups
    a = _size(weights + group * 4 * UNIT, inside, UNIT)
    b = _size(weights + (group * 4 + 1) * UNIT, inside, UNIT)
    c = _size(weights + (group * 4 + 2) * UNIT, inside, UNIT)
    d = _size(weights + (group * 4 + 3) * UNIT, inside, UNIT)
    # Of two equal ones the first wins; who wins two of its three comparisons is kept.
    ab, ac, ad = (a >= b).to(tl.int8), (a >= c).to(tl.int8), (a >= d).to(tl.int8)
    bc, bd, cd = (b >= c).to(tl.int8), (b >= d).to(tl.int8), (c >= d).to(tl.int8)
    for u in tl.static_range(UNIT):
        target = kept + group * 4 * UNIT + u
        tl.store(target, (ab + ac + ad >= 2).to(tl.int8), mask=inside)
        tl.store(target + UNIT, (1 - ab + bc + bd >= 2).to(tl.int8), mask=inside)
        tl.store(target + 2 * UNIT, (2 - ac - bc + cd >= 2).to(tl.int8), mask=inside)
        tl.store(target + 3 * UNIT, (3 - ad - bd - cd >= 2).to(tl.int8), mask=inside)


@triton.jit
@no_type_check
def _size(source, inside, UNIT: tl.constexpr):
    """The magnitude of a weight, or of a pair, as a whole number: the bits of floats that are not negative are in order."""
    size = tl.abs(tl.load(source, mask=inside, other=0).to(tl.float32))
    if UNIT == 2:
        other = tl.abs(tl.load(source + 1, mask=inside, other=0).to(tl.float32))
        tiny = 1.1754943508222875e-38
        size = tl.where(size < tiny, 0.0, size) + tl.where(other < tiny, 0.0, other)
    return size.to(tl.int32, bitcast=True)


@triton.jit
@no_type_check
def pack_kernel(weights, mask, values, meta, groups, words, count, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, word = place // words, place % words
    found = tl.zeros((BLOCK,), tl.int32)
    for s in tl.static_range(4):
        inside = (place < count) & (word * 4 + s < groups)
        group = row * groups + word * 4 + s
        source = weights + group * 4 * UNIT
        a = tl.load(mask + group * 4 * UNIT, mask=inside, other=1) != 0
        b = tl.load(mask + (group * 4 + 1) * UNIT, mask=inside, other=1) != 0
        c = tl.load(mask + (group * 4 + 2) * UNIT, mask=inside, other=0) != 0
        d = tl.load(mask + (group * 4 + 3) * UNIT, mask=inside, other=0) != 0
        i0 = tl.where(a, 0, tl.where(b, 1, 2))
        i1 = tl.where(d, 3, tl.where(c, 2, 1))
        for u in tl.static_range(UNIT):
            target = values + group * 2 * UNIT + u
            tl.store(target, tl.load(source + i0 * UNIT + u, mask=inside), mask=inside)
            tl.store(target + UNIT, tl.load(source + i1 * UNIT + u, mask=inside), mask=inside)
        found |= tl.where(inside, (i0 + 4 * i1) << (4 * s), 0)
    tl.store(meta + place, found.to(tl.uint16), mask=place < count)


@triton.jit
@no_type_check
def unpack_kernel(values, meta, weights, groups, words, count, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, word = place // words, place % words
    found = tl.load(meta + place, mask=place < count, other=0).to(tl.int32)
    for s in tl.static_range(4):
        inside = (place < count) & (word * 4 + s < groups)
        group = row * groups + word * 4 + s
        i0, i1 = (found >> (4 * s)) & 3, (found >> (4 * s + 2)) & 3
        for u in tl.static_range(UNIT):
            source = values + group * 2 * UNIT + u
            v0 = tl.load(source, mask=inside)
            v1 = tl.load(source + UNIT, mask=inside)
            for p in tl.static_range(4):
                chosen = tl.where(i1 == p, v1, tl.where(i0 == p, v0, tl.zeros_like(v0)))
                tl.store(weights + (group * 4 + p) * UNIT + u, chosen, mask=inside)


@triton.jit
@no_type_check
def matmul_kernel(
    planes, values, meta, scale, y, m, n, groups, UNIT: tl.constexpr, NIBBLES: tl.constexpr, SCALED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    words = (groups + 3) // 4
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)
        inside = (column < n)[:, None] & (group < groups)[None, :]
        word = tl.load(meta + column[:, None] * words + (group // 4)[None, :], mask=inside, other=0).to(tl.int32)
        places = word >> ((group % 4) * 4)[None, :]
        at = column[:, None] * groups + group[None, :]
        source = planes + row[:, None] * groups + group[None, :]
        within = (row < m)[:, None] & (group < groups)[None, :]
        for u in tl.static_range(UNIT):
            v0 = _stored(values, at * 2 * UNIT + u, inside, NIBBLES, planes.dtype.element_ty)
            v1 = _stored(values, (at * 2 + 1) * UNIT + u, inside, NIBBLES, planes.dtype.element_ty)
            for p in tl.static_range(4):
                zero = tl.zeros_like(v0)
                weight = tl.where(((places >> 2) & 3) == p, v1, tl.where((places & 3) == p, v0, zero))
                x = tl.load(source + (p * UNIT + u) * m.to(tl.int64) * groups, mask=within, other=0.0)
                found = tl.dot(x, tl.trans(weight), found, input_precision=PRECISION)
    if SCALED:
        found *= tl.load(scale + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(y + row[:, None] * n + column[None, :], found.to(y.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _stored(values, at, inside, NIBBLES: tl.constexpr, KIND: tl.constexpr):
    if NIBBLES:
        byte = tl.load(values + at // 2, mask=inside, other=0).to(tl.int32)
        return ((((byte >> ((at % 2) * 4).to(tl.int32)) & 15) ^ 8) - 8).to(KIND)
    return tl.load(values + at, mask=inside, other=0).to(KIND)


def shipped() -> Iterator[Shipped]:
    for x, stored, unit in (
        ("fp16", "i8", 1),
        ("fp16", "fp16", 1),
        ("bf16", "i8", 1),
        ("fp16", "u8", 2),
        ("fp32", "i8", 1),
        ("fp32", "fp32", 1),
    ):
        constants = {
            "UNIT": unit, "NIBBLES": stored == "u8", "SCALED": stored in ("i8", "u8"),
            "ROWS": ROWS, "COLUMNS": COLUMNS[4 if x == "fp32" else 2], "GROUPS": GROUPS, "PRECISION": "ieee" if x == "fp32" else "tf32",
        }  # fmt: skip
        types = {"values": f"*{stored}", "meta": "*u16", **dict.fromkeys(("m", "n", "groups"), "i32")}
        yield _shipped(matmul_kernel, f"matmul-{x}-{stored}-unit{unit}", constants, types, f"*{x}", OPTIONS)
    for unit in (1, 2):
        for name, kernel, bits in (("mask", mask_kernel, "fp32"), ("pack", pack_kernel, "i16"), ("unpack", unpack_kernel, "i8")):
            constants = {"UNIT": unit, "BLOCK": 4 * BLOCK if name == "mask" else BLOCK}
            types = {"kept": "*i8", "mask": "*i8", "meta": "*u16", **dict.fromkeys(("groups", "words", "count"), "i32")}
            yield _shipped(kernel, f"{name}-{bits}-unit{unit}", constants, types, f"*{bits}", {"num_warps": 4, "num_stages": 1})


def _shipped(
    kernel: Any, name: str, constants: dict[str, Any], types: dict[str, str], rest: str, options: dict[str, int]
) -> Shipped:
    signature = {each: "constexpr" if each in constants else types.get(each, rest) for each in kernel.arg_names}
    return Shipped(name, kernel, signature, constants, options)
