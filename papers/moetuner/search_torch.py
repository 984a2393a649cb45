"""Search by swaps where a program would take too long: many random starts at once, scores of all swaps in one shot (PyTorch).

Every start makes its best swap until it has none that helps; the twin is :mod:`papers.moetuner.search_jax`. Random starts come from
outside, so both see the same.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, Int64

from papers.moetuner.ilp import slowness


def starts(number: int, experts: int, count: int, rng: np.random.Generator) -> Int64[np.ndarray, "start expert"]:
    """Random groups of equal size."""
    return rng.permuted(np.tile(np.arange(experts) // (experts // count), (number, 1)), axis=1)


def group(
    load: Int[np.ndarray, " expert"], begin: Int[np.ndarray, "start expert"], count: int, moves: int = 1000, device: str = "cpu"
) -> Int64[np.ndarray, "start expert"]:
    """Groups of equal load from every start, by swaps of two experts, at most ``moves`` of them.

    Swapping a and b moves d = P_a - P_b from the group of a to that of b; what that does to the two deviations is a table over all
    a, b of every start.
    """
    p = torch.as_tensor(load, dtype=torch.float64, device=device)
    groups = torch.as_tensor(begin, device=device)
    moved = p[:, None] - p
    row = torch.arange(len(groups), device=device)
    for _ in range(moves):
        off = torch.zeros(len(groups), count, dtype=p.dtype, device=device).scatter_add_(1, groups, p.expand_as(groups))
        own = (off - p.sum() / count).gather(1, groups)  # by how much an expert's group is above the mean
        here, there = own[:, :, None], own[:, None, :]
        gain = (here - moved).abs() + (there + moved).abs() - here.abs() - there.abs()
        gain.masked_fill_(groups[:, :, None] == groups[:, None, :], 0.0)
        best, place = gain.flatten(1).min(1)
        better = best < -1e-9
        if not better.any():
            break
        a, b = place // len(p), place % len(p)
        swapped = groups.clone()
        swapped[row, a], swapped[row, b] = groups[row, b], groups[row, a]
        groups = torch.where(better[:, None], swapped, groups)
    return groups.cpu().numpy()


def assign(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    begin: Int[np.ndarray, "start layer group"],
    moves: int = 1000,
    device: str = "cpu",
) -> Int64[np.ndarray, "start layer group"]:
    """Assignments from every start, by swaps of two groups of a layer; the cost is the largest transfer, layers summed."""
    slow = torch.as_tensor(slowness(bandwidth), device=device)
    c = torch.as_tensor(exchange, dtype=slow.dtype, device=device)
    place = torch.as_tensor(begin, device=device)
    number, layers, count = place.shape
    first, second = torch.triu_indices(count, count, 1, device=device)
    swaps = torch.arange(count, device=device).repeat(len(first), 1)
    swaps[range(len(first)), first], swaps[range(len(first)), second] = second, first
    row = torch.arange(number, device=device)
    for _ in range(moves):
        now = _largest(c, slow, place[:, :-1], place[:, 1:])
        tried = place[:, :, swaps].movedim(2, 0)  # swap, start, layer, group
        gain = torch.zeros(len(swaps), number, layers, dtype=slow.dtype, device=device)
        gain[..., 1:] += _largest(c, slow, place[:, :-1].expand_as(tried[:, :, 1:]), tried[:, :, 1:]) - now
        gain[..., :-1] += _largest(c, slow, tried[:, :, :-1], place[:, 1:].expand_as(tried[:, :, :-1])) - now
        best, index = gain.movedim(0, 1).flatten(1).min(1)
        better = best < -1e-9
        if not better.any():
            break
        swap, layer = index // layers, index % layers
        changed = place.clone()
        changed[row, layer] = tried[swap, row, layer]
        place = torch.where(better[:, None, None], changed, place)
    return place.cpu().numpy()


def _largest(c: torch.Tensor, slow: torch.Tensor, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The largest transfer between every two layers; only the pairs of groups matter, each on one pair of GPUs."""
    return (c * slow[here[..., :, None], there[..., None, :]]).amax((-2, -1))
