"""Triton: one program packs or unpacks GROUPS groups; the shifts are unrolled when the kernel is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import triton
import triton.language as tl
from jaxtyping import UInt8
from torch import Tensor

from common.ops import Shipped

from .layout import group
from .torch_impl import grouped

OPTIONS = {"num_warps": 4, "num_stages": 1}
GROUPS = 512


def pack(values: UInt8[Tensor, "*rows count"], *, bits: int, high_first: bool = True) -> UInt8[Tensor, "*rows bytes"]:
    size, width = group(bits)
    used = -(-values.shape[-1] * bits // 8)
    return _launch(pack_kernel, grouped(values, size), width, bits, high_first).flatten(-2)[..., :used]


def unpack(
    packed: UInt8[Tensor, "*rows bytes"], *, bits: int, count: int, high_first: bool = True
) -> UInt8[Tensor, "*rows count"]:
    size, width = group(bits)
    return _launch(unpack_kernel, grouped(packed, width), size, bits, high_first).flatten(-2)[..., :count]


def _launch(kernel: Any, groups: Tensor, columns: int, bits: int, high_first: bool) -> Tensor:
    groups = groups.contiguous()
    out = groups.new_empty(*groups.shape[:-1], columns)
    count = out.numel() // columns
    size, width = group(bits)
    if count and not out.is_meta:
        kernel[(triton.cdiv(count, GROUPS),)](groups, out, count, bits, size, width, high_first, GROUPS, **OPTIONS)
    return out


@triton.jit
@no_type_check
def pack_kernel(
    values, packed, count, BITS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, HIGH: tl.constexpr, GROUPS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    for byte in tl.static_range(WIDTH):
        found = tl.zeros((GROUPS,), tl.int32)
        for value in tl.static_range(SIZE):
            source = values + row * SIZE + value
            found |= _part(source, row < count, 8 * (byte + 1) - BITS * (value + 1) if HIGH else BITS * value - 8 * byte, BITS, 8)
        tl.store(packed + row * WIDTH + byte, (found & 255).to(tl.uint8), mask=row < count)


@triton.jit
@no_type_check
def unpack_kernel(
    packed, values, count, BITS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, HIGH: tl.constexpr, GROUPS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    for value in tl.static_range(SIZE):
        found = tl.zeros((GROUPS,), tl.int32)
        for byte in tl.static_range(WIDTH):
            source = packed + row * WIDTH + byte
            found |= _part(source, row < count, BITS * (value + 1) - 8 * (byte + 1) if HIGH else 8 * byte - BITS * value, 8, BITS)
        tl.store(values + row * SIZE + value, (found & ((1 << BITS) - 1)).to(tl.uint8), mask=row < count)


@triton.jit
@no_type_check
def _part(source, inside, SHIFT: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr):
    """What ``FROM`` bits read at ``source``, shifted left, leave in a field of ``TO`` bits; nothing is read where they miss it."""
    if SHIFT <= -FROM or SHIFT >= TO:
        return tl.zeros(source.shape, tl.int32)
    x = tl.load(source, mask=inside, other=0).to(tl.int32)
    if SHIFT >= 0:
        return x << SHIFT
    return x >> -SHIFT


def shipped() -> Iterator[Shipped]:
    for bits in range(1, 9):
        size, width = group(bits)
        for high in (True, False) if bits in (3, 4) else (True,):
            constants = {"BITS": bits, "SIZE": size, "WIDTH": width, "HIGH": high, "GROUPS": GROUPS}
            for kernel in (pack_kernel, unpack_kernel):
                signature = {
                    name: "constexpr" if name in constants else "i32" if name == "count" else "*u8" for name in kernel.arg_names
                }
                name = kernel.__name__.removesuffix("_kernel")
                yield Shipped(f"{name}-{bits}{'' if high else '-low'}", kernel, signature, constants, OPTIONS)
