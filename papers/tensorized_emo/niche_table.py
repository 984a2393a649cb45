"""The paper's own form of NSGA-III's second stage: a table of candidates, walked level by level. Kept to check the sorted
queue of ``tensor_torch.survivors`` against; it takes O(r n) memory."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.pareto import non_dominated_rank
from papers.tensorized_emo.tensor_torch import associate, normalise


def survivors(f: Float[Tensor, "two_n m"], n: int, references: Float[Tensor, "r m"]) -> Bool[Tensor, " two_n"]:
    """The n points that NSGA-III keeps (paper, section on TensorNSGA-III, both stages)."""
    size, r = len(f), len(references)
    rank = non_dominated_rank(f, enough=n)
    worst = rank.sort().values[n - 1]
    kept, last = rank < worst, rank == worst
    nearest, distance = associate(normalise(f, rank <= worst), references)
    mine = last & (nearest == torch.arange(r)[:, None])
    held = torch.zeros(r, dtype=torch.int64).index_add_(0, nearest, kept.to(torch.int64))
    held = held.where(mine.any(dim=1), size)
    # Stage 1: every empty reference point takes its nearest candidate, all at once.
    empty = held == 0
    closest = distance.where(mine, torch.inf).argmin(dim=1)
    if int(kept.sum()) + int(empty.sum()) >= n:
        return kept.index_fill(0, closest[empty][: n - int(kept.sum())], True)
    kept = kept.index_fill(0, closest[empty], True)
    mine = mine & ~kept
    # Stage 2: a row for each reference point with its remaining candidates, filled up with ``size``.
    table = torch.arange(size).where(mine, size).sort(dim=1).values
    held = (held + empty).where(mine.any(dim=1), size)
    column = torch.zeros(r, dtype=torch.int64)
    while (wanted := n - int(kept.sum())) > 0:
        level = held == held.min()
        rows = level.nonzero()[:, 0][:wanted]
        kept = kept.index_fill(0, table[rows, column[rows]], True)
        column = column + level
        left = table.gather(1, column.clamp(max=size - 1)[:, None])[:, 0] < size
        held = (held + level).where(left, size)
    return kept
