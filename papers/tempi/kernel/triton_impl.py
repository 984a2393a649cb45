"""The paper's kernel in Triton: one launch for any number of blocks and objects, in words as wide as everything allows.

A program has a tile of the two inner loops, x filled first; the outer loops are the rest of its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import UInt8
from torch import Tensor

from common.ops import Shipped

from .torch_impl import WORDS, word

TILE, WARPS = 1024, 4
"""Words of a program, and warps that move them."""

_TYPES = {1: "*u8", 2: "*i16", 4: "*i32", 8: "*i64"}


def strided_pack(
    source: UInt8[Tensor, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> UInt8[Tensor, " packed"]:
    packed = torch.empty(math.prod(counts), dtype=torch.uint8, device=source.device)
    _launch(source, packed, start, counts, strides, unpack=False)
    return packed


def strided_unpack(
    packed: UInt8[Tensor, " packed"],
    target: UInt8[Tensor, " bytes"],
    *,
    start: int,
    counts: tuple[int, ...],
    strides: tuple[int, ...],
    out: Tensor | None = None,
) -> UInt8[Tensor, " bytes"]:
    result = target.clone() if out is None else out
    _launch(result, packed, start, counts, strides, unpack=True)
    return result


def tile(words: int, rows: int) -> tuple[int, int]:
    """Words along x and rows along y of a program, powers of two, x filled first."""
    x = min(triton.next_power_of_2(words), TILE)
    return x, min(triton.next_power_of_2(rows), TILE // x)


def _launch(memory: Tensor, packed: Tensor, start: int, counts: tuple[int, ...], strides: tuple[int, ...], unpack: bool) -> None:
    if not packed.numel():
        return
    # Torch has no 16-byte integers; neighbouring words of 8 are loaded together by the compiler.
    width = min(8, word(start, counts[0], *strides[1:], memory.data_ptr(), packed.data_ptr()))
    whole = memory[: memory.numel() // width * width].view(WORDS[width])
    n = (counts[0] // width, *counts[1:], *(1,) * (5 - len(counts)))
    s = (*(stride // width for stride in strides[1:]), *(0,) * (5 - len(strides)))
    x, y = tile(n[0], n[1])
    grid = (triton.cdiv(n[0], x) * triton.cdiv(n[1], y) * math.prod(n[2:]),)
    strided_kernel[grid](
        whole, packed.view(WORDS[width]), start // width, *n, *s, UNPACK=unpack, X=x, Y=y, num_warps=WARPS
    )  # fmt: skip


@triton.jit
@no_type_check
def strided_kernel(
    memory_ptr, packed_ptr, start, n0, n1, n2, n3, n4, s1, s2, s3, s4, UNPACK: tl.constexpr, X: tl.constexpr, Y: tl.constexpr
):  # fmt: skip
    across, down = tl.cdiv(n0, X), tl.cdiv(n1, Y)
    program = tl.program_id(0)
    x = (program % across) * X + tl.arange(0, X)
    y = (program // across % down) * Y + tl.arange(0, Y)
    rest = program // (across * down)
    i2, i3, i4 = rest % n2, rest // n2 % n3, rest // n2 // n3
    # Memory may have more words than 32 bits count.
    outer = start + i4.to(tl.int64) * s4 + i3.to(tl.int64) * s3 + i2.to(tl.int64) * s2
    at = outer + y[:, None].to(tl.int64) * s1 + x[None, :]
    to = (rest.to(tl.int64) * n1 + y[:, None]) * n0 + x[None, :]
    inside = (y[:, None] < n1) & (x[None, :] < n0)
    if UNPACK:
        tl.store(memory_ptr + at, tl.load(packed_ptr + to, mask=inside), mask=inside)
    else:
        tl.store(packed_ptr + to, tl.load(memory_ptr + at, mask=inside), mask=inside)


def shipped() -> Iterator[Shipped]:
    numbers = dict.fromkeys(("n0", "n1", "n2", "n3", "n4"), "i32") | dict.fromkeys(("s1", "s2", "s3", "s4"), "i64")
    flags = dict.fromkeys(("UNPACK", "X", "Y"), "constexpr")
    for width, x, y in ((8, 64, 16), (1, 1, 1024), (4, 1024, 1), (2, 32, 32)):
        for unpack in (False, True):
            signature = {"memory_ptr": _TYPES[width], "packed_ptr": _TYPES[width], "start": "i64", **numbers, **flags}
            name = f"{'unpack' if unpack else 'pack'}-{width}B-{x}x{y}"
            yield Shipped(name, strided_kernel, signature, {"UNPACK": unpack, "X": x, "Y": y}, {"num_warps": WARPS})
