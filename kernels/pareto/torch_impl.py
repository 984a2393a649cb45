"""PyTorch: blocks of comparisons over all points; Python walks over blocks and fronts, never over points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int32
from torch import Tensor

PAIRS = 1 << 20
"""Pairs that are compared at once where the caller names no block: a tile that stays in the cache."""


def dominance_count(points: Float[Tensor, "n m"], by: Float[Tensor, "k m"], *, block: int | None = None) -> Int32[Tensor, " n"]:
    count = torch.zeros(len(points), dtype=torch.int32, device=points.device)
    columns = points.mT.contiguous()
    for some in by.split(block or _rows(len(points))):
        # One objective after the other: no array of pairs has a third axis.
        nowhere_worse = torch.ones(len(some), len(points), dtype=torch.bool, device=points.device)
        better = torch.zeros_like(nowhere_worse)
        for theirs, mine in zip(some.mT[:, :, None], columns[:, None], strict=True):
            nowhere_worse &= theirs <= mine
            better |= theirs < mine
        count += (nowhere_worse & better).sum(dim=0, dtype=torch.int32)
    return count


def non_dominated_rank(
    points: Float[Tensor, "n m"], *, enough: int | None = None, block: int | None = None
) -> Int32[Tensor, " n"]:
    return peel(points, enough, lambda some, by: _count_sorted(some, by, block))


def peel(points: Tensor, enough: int | None, count: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Fronts, with a function that counts how many of some sorted rows dominate others."""
    whole = ~points.isnan().any(dim=1)
    columns, order = _sorted(points[whole])
    c = count(columns, columns)
    found = torch.full((len(order),), -1, dtype=torch.int32, device=points.device)
    left = torch.arange(len(order), device=points.device)
    r, ranked = 0, 0
    while len(left) and (enough is None or ranked < enough):
        free = c == 0
        front, rest = left[free], left[~free]
        found[front] = r
        r, ranked, c = r + 1, ranked + len(front), c[~free]
        # Of the last front that is wanted nothing has to be taken away.
        if len(rest) and (enough is None or ranked < enough):
            c = c - count(columns[:, rest], columns[:, front])
        left = rest
    found[left] = r
    rank = torch.full((len(points),), r + (len(left) > 0), dtype=torch.int32, device=points.device)
    rank[whole.nonzero()[:, 0][order]] = found
    return rank


def _sorted(points: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in lexicographic order, as columns: first the number of the distinct row, then all objectives but the first.

    Of two different rows the later never dominates the earlier, and the earlier does if it is nowhere worse in the rest.
    """
    order = torch.arange(len(points), device=points.device)
    for column in points.mT.flip(0):
        order = order[column[order].argsort(stable=True)]
    rows = points[order]
    fresh = (rows[1:] != rows[:-1]).any(dim=1)
    number = torch.cat([fresh.new_zeros(min(len(rows), 1)), fresh]).cumsum(0)
    # Half precision does not hold the numbers of many rows.
    return torch.cat([number[None].to(torch.promote_types(rows.dtype, torch.float32)), rows.mT[1:]]), order


def _count_sorted(columns: Tensor, by: Tensor, block: int | None) -> Tensor:
    """:func:`dominance_count` of rows in the form of :func:`_sorted`; only those at or after the first of a block are compared."""
    n = columns.shape[1]
    count = torch.zeros(n, dtype=torch.int32, device=columns.device)
    if not n or not by.shape[1]:
        return count
    size = block or _rows(n)
    starts = torch.searchsorted(columns[0].contiguous(), by[0, ::size].contiguous(), right=True).tolist()
    for start, some in zip(starts, by.split(size, dim=1), strict=True):
        mine = columns[:, None, start:]
        better = some[0, :, None] < mine[0]
        for theirs, other in zip(some[1:, :, None], mine[1:], strict=True):
            better &= theirs <= other
        count[start:] += better.sum(dim=0, dtype=torch.int32)
    return count


def crowding_distance(points: Float[Tensor, "n m"], rank: Int32[Tensor, " n"]) -> Float[Tensor, " n"]:
    n = len(points)
    distance = points.new_zeros(n)
    if not n:
        return distance
    for column in points.mT:
        # Sorted by front and within it by value: the neighbours of a point are the rows beside it.
        order = column.argsort(stable=True)
        order = order[rank[order].argsort(stable=True)]
        values, front = column[order], rank[order]
        edge = torch.ones(n + 1, dtype=torch.bool, device=points.device)
        edge[1:-1] = front[1:] != front[:-1]
        outer = edge[:-1] | edge[1:]
        group = edge[:-1].cumsum(0) - 1
        first = edge.nonzero()[:, 0]
        spread = (values[first[1:] - 1] - values[first[:-1]])[group]
        gap = torch.zeros_like(values)
        gap[1:-1] = values[2:] - values[:-2]
        gap = torch.where(spread > 0, gap / spread.where(spread > 0, 1), 0)
        distance[order] += gap.masked_fill(outer, torch.inf)
    return distance


def hypervolume(
    points: Float[Tensor, "n m"], reference_point: Float[Tensor, " m"], *, block: int | None = None
) -> Float[Tensor, ""]:
    points = torch.minimum(points, reference_point)
    points = points[points[:, 0].argsort(stable=True)]
    width = torch.cat([points[1:, 0], reference_point[:1]]) - points[:, 0]
    if points.shape[1] == 2:
        return (width * (reference_point[1] - _running_minimum(points[:, 1]))).sum()
    level = points[:, 2].sort().values
    depth = torch.cat([level[1:], reference_point[2:]]) - level
    volume = points.new_zeros(())
    for some, deep in zip(level.split(size := block or _rows(len(points))), depth.split(size), strict=True):
        seen = torch.where(points[:, 2] <= some[:, None], points[:, 1], reference_point[1])
        volume = volume + deep @ ((reference_point[1] - _running_minimum(seen)) @ width)
    return volume


def _running_minimum(x: Tensor) -> Tensor:
    return x.cummin(dim=-1).values if x.numel() else x


def hype_fitness(
    points: Float[Tensor, "n m"], samples: Float[Tensor, "s m"], alpha: Float[Tensor, " levels"], *, block: int | None = None
) -> Float[Tensor, " n"]:
    fitness = points.new_zeros(len(points))
    columns = points.mT.contiguous()
    for some in samples.split(block or _rows(len(points))):
        covers = torch.ones(len(some), len(points), dtype=torch.bool, device=points.device)
        for theirs, mine in zip(some.mT[:, :, None], columns[:, None], strict=True):
            covers &= mine <= theirs
        weight = alpha[covers.sum(dim=1).clamp(max=len(alpha) - 1)]
        fitness += weight.to(fitness.dtype) @ covers.to(fitness.dtype)
    return fitness / len(samples)


def _rows(n: int) -> int:
    return max(1, PAIRS // max(n, 1))
