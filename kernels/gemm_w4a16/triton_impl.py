"""Triton: MARLIN's kernel. A grid of one program for each multiprocessor walks a striped partition of the tiles; words come in
through an asynchronous pipeline, 16 bytes for each thread, become fragments by bit tricks, and meet x in the tensor cores.

A word holds 4 rows x 2 columns. Its eight nibbles are thus eight matrices (k / 4, n / 2), one for each row (two, half) of a pair
and each ``block`` of columns: four products are added up for either block, and no weight changes its thread. The rows of x are
cut in the same four beforehand. The gradient is that of ``torch_impl``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from einops import rearrange
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped

from . import torch_impl
from .layout import ROWS, SIZES


class Tile(NamedTuple):
    """Rows of x, k and columns of one step of a program (thread_m, thread_k, thread_n of the paper), and how it is launched."""

    m: int
    k: int
    n: int
    warps: int
    stages: int


def tile_for(m: int, dtype: torch.dtype, narrow: bool = False) -> Tile:
    """The paper's two shapes. ``narrow``: half as wide, for Blackwell, where the wide one runs out of registers; float32, which
    the paper does not have, is narrower still."""
    if dtype == torch.float32:
        return Tile(16, 64, 64, 8, 2)
    return Tile(16, 128, 128, 8, 4) if m <= 16 else Tile(64, 64, 128 if narrow else 256, 8, 4)


def matmul(
    x: Float[Tensor, "*batch k"],
    packed: Int32[Tensor, "tiles words"],
    scales: Float[Tensor, "groups n"],
    *,
    group: int = 128,
    locks: Int32[Tensor, " columns"] | None = None,
    blocks: int | None = None,
) -> Float[Tensor, "*batch n"]:
    """``blocks``: programs in the grid, at most one for each multiprocessor; tests take others."""
    if x.dtype == torch.float64:
        raise ValueError("matmul: backend 'triton' computes in float32, got float64; use backend='torch'")
    return _Product.apply(x, packed.contiguous(), scales.contiguous(), locks, blocks)


class _Product(torch.autograd.Function):
    """Keeps the words and the scales; the backward makes tiles of W from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, locks: Tensor | None, blocks: int | None) -> Tensor:
        ctx.save_for_backward(packed, scales)
        n = packed.shape[1] // 2
        y = x.new_empty(*x.shape[:-1], n)
        if y.numel() and not y.is_meta:
            launch(x.reshape(-1, x.shape[-1]), packed, scales, y.view(-1, n), locks, blocks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return torch_impl.backward(dy, *ctx.saved_tensors), None, None, None, None


def launch(x: Tensor, packed: Tensor, scales: Tensor, y: Tensor, locks: Tensor | None = None, blocks: int | None = None) -> None:
    (m, k), n = x.shape, y.shape[1]
    tile = tile_for(m, x.dtype, blackwell(x.device))
    columns = triton.cdiv(m, tile.m) * (n // tile.n)
    if locks is None:
        locks = own_locks(x.device, columns)
    blocks = blocks or multiprocessors(x.device)
    parts = rearrange(x, f"m {ROWS} -> (two half) m (tile pair)", **{name: SIZES[name] for name in ("half", "pair", "two")})
    total = columns * (k // tile.k)
    # A stripe never begins inside a group.
    unit = max(1, 128 // tile.k)
    each = triton.cdiv(triton.cdiv(total, blocks), unit) * unit
    grid = (triton.cdiv(total, each),)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    marlin_kernel[grid](
        parts.contiguous(), packed, scales, y, locks, m, n // 256, k // 128, each, len(scales) == 1,
        tile.m, tile.k, tile.n, precision, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
@no_type_check
def marlin_kernel(
    parts, packed, scales, y, locks, m, strips, groups, each, SINGLE: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``each`` tiles of k x columns for each program, k fastest; sums of a column go from the bottom program to the top one."""
    kind = parts.dtype.element_ty
    # The compiler sees what n and k can be divided by, and so that 16 bytes lie together.
    n, k = strips * 256, groups * 128
    high = k // K
    across = n // N
    total = high * across * tl.cdiv(m, M)
    # Programs start in the order of their numbers where not all run at once, and wait for those below: these must come first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    tile = block * each
    end = tl.minimum(tile + each, total)
    # Rows (tile, pair) and columns (strip, c, j) of the eight matrices in a word.
    row = tl.arange(0, K // 4)
    lane = tl.arange(0, N // 2)
    strip, c, j = lane // 32, lane // 4 % 8, lane % 4
    word = (row // 4)[:, None] * (2 * n) + (row % 4)[:, None] * 4 + (strip * 128 + c * 16 + j)[None, :]
    if SINGLE:
        factor = strip * 64 + j // 2 * 32 + c // 2 * 8 + j % 2 * 4 + c % 2
        step = 2
    else:
        factor = strip * 64 + c * 8 + j * 2
        step = 1
    while tile < end:
        column = tile // high
        first = tile % high
        last = tl.minimum(high, first + end - tile)
        rows = column // across * M + tl.arange(0, M)
        start = tl.cast(column % across, tl.int64) * N
        inside = (rows < m)[:, None]
        source = parts + tl.cast(rows, tl.int64)[:, None] * (k // 4) + row[None, :]
        quarter = tl.cast(m, tl.int64) * (k // 4)
        words = packed + start * 2 + word
        zero, one = tl.zeros((M, N // 2), tl.float32), tl.zeros((M, N // 2), tl.float32)
        for at in tl.range(first, last):
            w = tl.load(words + tl.cast(at, tl.int64) * (K // 16) * 2 * n, eviction_policy="evict_first")
            x0 = tl.load(source + at * (K // 4), mask=inside, other=0.0)
            x1 = tl.load(source + quarter + at * (K // 4), mask=inside, other=0.0)
            x2 = tl.load(source + 2 * quarter + at * (K // 4), mask=inside, other=0.0)
            x3 = tl.load(source + 3 * quarter + at * (K // 4), mask=inside, other=0.0)
            if SINGLE:
                s0, s1 = 1.0, 1.0
            else:
                group = scales + tl.cast(at * K // 128, tl.int64) * n + start + factor
                s0, s1 = tl.load(group)[None, :], tl.load(group + step)[None, :]
            zero = tl.dot(x0, weights(w, 0, s0, SINGLE, kind), zero, input_precision=PRECISION)
            zero = tl.dot(x1, weights(w, 1, s0, SINGLE, kind), zero, input_precision=PRECISION)
            zero = tl.dot(x2, weights(w, 4, s0, SINGLE, kind), zero, input_precision=PRECISION)
            zero = tl.dot(x3, weights(w, 5, s0, SINGLE, kind), zero, input_precision=PRECISION)
            one = tl.dot(x0, weights(w, 2, s1, SINGLE, kind), one, input_precision=PRECISION)
            one = tl.dot(x1, weights(w, 3, s1, SINGLE, kind), one, input_precision=PRECISION)
            one = tl.dot(x2, weights(w, 6, s1, SINGLE, kind), one, input_precision=PRECISION)
            one = tl.dot(x3, weights(w, 7, s1, SINGLE, kind), one, input_precision=PRECISION)
        if SINGLE:
            zero *= tl.load(scales + start + factor)[None, :].to(tl.float32)
            one *= tl.load(scales + start + factor + step)[None, :].to(tl.float32)
        target = y + tl.cast(rows, tl.int64)[:, None] * n + (start + strip * 64 + j * 16 + c)[None, :]
        hand_over(zero, one, target, target + 8, inside, locks + column, column, first, last, high, each, block)
        tile += last - first


@triton.jit
@no_type_check
def hand_over(zero, one, target, other, inside, lock, column, first, last, high, each, block):
    """Add to what the programs below in this column have left in y, and let the one above do so; shared with the 2:4 form."""
    kind = target.dtype.element_ty
    if last < high:
        # Each program below adds one to the lock.
        below = ((column + 1) * high - 1) // each - block
        while tl.atomic_add(lock, 0, sem="acquire") != below:
            pass
        tl.debug_barrier()
        zero += tl.load(target, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        one += tl.load(other, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    tl.store(target, zero.to(kind), mask=inside)
    tl.store(other, one.to(kind), mask=inside)
    tl.debug_barrier()
    if first > 0:
        tl.atomic_add(lock, 1, sem="release")
    elif last < high:
        tl.atomic_xchg(lock, 0, sem="relaxed")


@triton.jit
@no_type_check
def weights(w, NIBBLE: tl.constexpr, s, SINGLE: tl.constexpr, KIND: tl.constexpr):
    """q s for one nibble of each word; shared with the 2:4 form. In 16 bits, q + 8 is set into the mantissa of 1024 (or of 1024 / 16, or 128)."""
    if tl.float16 == KIND:
        # 0x64 is the high byte of 1024: 1024 + v; with v four bits higher, 1024 + 16 v.
        half = (w >> (16 * (NIBBLE // 4) + 8 * (NIBBLE % 4 // 2))).to(tl.int16)
        if NIBBLE % 2 == 0:
            q = ((half & 0x0F) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
        else:
            q = ((half & 0xF0) | 0x6400).to(tl.float16, bitcast=True) * 0.0625 - 72.0
    elif tl.bfloat16 == KIND:
        # 0x4300 is 128, whose mantissa of seven bits holds v.
        half = (w >> (4 * NIBBLE)).to(tl.int16)
        q = ((half & 0x0F) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    else:
        q = ((w >> (4 * NIBBLE) & 0x0F) - 8).to(tl.float32)
    if SINGLE:
        return q.to(KIND)
    return (q * s).to(KIND)


@cache
def multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return 4  # interpreted, one after the other: enough for columns to be shared
    return torch.cuda.get_device_properties(device).multi_processor_count


def blackwell(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 10


def own_locks(device: torch.device, columns: int) -> Tensor:
    """The device's own counters, zero between calls."""
    if device not in _KEPT or len(_KEPT[device]) < columns:
        _KEPT[device] = torch.zeros(max(4096, columns), dtype=torch.int32, device=device)
    return _KEPT[device]


_KEPT: dict[torch.device, Tensor] = {}


def shipped() -> Iterator[Shipped]:
    types = {"packed": "*i32", "locks": "*i32", "m": "i32", "strips": "i32", "groups": "i32", "each": "i32"}
    every = ("sm_80", "sm_90", "sm_100", "gfx942")
    forms = [
        (f"{kind}-m{m}{'-narrow' if narrow else ''}", dtype, m, narrow, targets)
        for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16))
        for m, narrow, targets in ((16, False, every), (64, False, ("sm_80", "sm_90", "gfx942")), (64, True, ("sm_100",)))
    ]
    for name, dtype, m, narrow, targets in [*forms, ("fp32-m16", torch.float32, 16, False, every)]:
        tile = tile_for(m, dtype, narrow)
        for single in (False, True) if dtype == torch.float16 else (False,):
            precision = "ieee" if dtype == torch.float32 else "tf32"
            constants = {"SINGLE": single, "M": tile.m, "K": tile.k, "N": tile.n, "PRECISION": precision}
            kind = name.partition("-")[0]
            signature = {
                each: "constexpr" if each in constants else types.get(each, f"*{kind}") for each in marlin_kernel.arg_names
            }
            options = {"num_warps": tile.warps, "num_stages": tile.stages}
            yield Shipped(f"{name}{'-columns' if single else ''}", marlin_kernel, signature, constants, options, targets)
