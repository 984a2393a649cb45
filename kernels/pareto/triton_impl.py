"""Triton: a program keeps a tile of points and walks over all rows that may dominate them. Only the counts are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from common.ops import Shipped

from .torch_impl import peel

POINTS, ROWS = 64, 32
OPTIONS = {"num_warps": 4, "num_stages": 2}


def dominance_count(points: Float[Tensor, "n m"], by: Float[Tensor, "k m"], *, block: int | None = None) -> Int32[Tensor, " n"]:
    count = torch.zeros(len(points), dtype=torch.int32, device=points.device)
    if len(points) and len(by):
        # Columns lie together, so that neighbouring threads read neighbouring words.
        mine, theirs = (each.to(torch.float32).mT.contiguous() for each in (points, by))
        rows = ROWS if block is None else triton.next_power_of_2(block)
        grid = (triton.cdiv(len(points), POINTS),)
        count_kernel[grid](mine, theirs, count, len(points), len(by), points.shape[1], POINTS, rows, **OPTIONS)
    return count


def non_dominated_rank(
    points: Float[Tensor, "n m"], *, enough: int | None = None, block: int | None = None
) -> Int32[Tensor, " n"]:
    # The columns of the sorted form dominate one another as points do: the number of the distinct row stands for the
    # first objective. Rows that are equal in float32 must have one number, so they are rounded before they are sorted.
    return peel(points.to(torch.float32), enough, lambda some, by: dominance_count(some.mT, by.mT, block=block))


@triton.jit
@no_type_check
def count_kernel(points, by, count, n, k, m, POINTS: tl.constexpr, ROWS: tl.constexpr):
    j = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    total = tl.zeros((POINTS,), tl.int32)
    for start in range(0, k, ROWS):
        i = start + tl.arange(0, ROWS)
        nowhere_worse = (i < k)[:, None] & (j < n)[None, :]
        better = tl.zeros((ROWS, POINTS), tl.int1)
        for objective in range(m):
            theirs = tl.load(by + objective * k + i, mask=i < k, other=0.0)
            mine = tl.load(points + objective * n + j, mask=j < n, other=0.0)
            nowhere_worse = nowhere_worse & (theirs[:, None] <= mine[None, :])
            better = better | (theirs[:, None] < mine[None, :])
        total += tl.sum((nowhere_worse & better).to(tl.int32), axis=0)
    tl.store(count + j, total, mask=j < n)


def shipped() -> Iterator[Shipped]:
    signature = {"points": "*fp32", "by": "*fp32", "count": "*i32", "n": "i32", "k": "i32", "m": "i32"}
    constants = {"POINTS": POINTS, "ROWS": ROWS}
    yield Shipped("count", count_kernel, signature | dict.fromkeys(constants, "constexpr"), constants, OPTIONS)
