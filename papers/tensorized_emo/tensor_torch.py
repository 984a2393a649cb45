"""NSGA-II, NSGA-III, MOEA/D and HypE on whole populations, in PyTorch. No function here walks over individuals.

``step(setting)(state, noise) -> state`` is one generation. It is pure: the random numbers come in as ``noise``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.pareto import crowding_distance, hype_fitness, non_dominated_rank
from papers.tensorized_emo.settings import EXACT, STEPS, Noise, Setting, State, aggregate

PAIRS = 1 << 21
"""Pairs of a point and a reference point that are compared at once."""


def draw(setting: Setting, generator: torch.Generator, dtype: Any = torch.float32) -> dict[str, Tensor]:
    """The noise of one generation, drawn by torch."""
    return {
        name: torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
        for name, shape in setting.noise().items()
    }


def step(setting: Setting) -> Callable[[State, Noise], State]:
    """One generation of the setting's algorithm."""
    return {"nsga2": _nsga2, "nsga3": _nsga3, "moead": _moead, "hype": _hype}[setting.algorithm](setting)


def _nsga2(setting: Setting) -> Callable[[State, Noise], State]:
    def generation(state: State, noise: Noise) -> State:
        rank = non_dominated_rank(state.f)
        better = torch.empty_like(rank)
        better[_lexsort(-crowding_distance(state.f, rank), rank)] = torch.arange(len(rank), dtype=rank.dtype, device=rank.device)
        children = setting.children(state.x[_tournament(-better, noise["mate"])], noise)
        x, f = setting.merged(state, children)
        rank = non_dominated_rank(f, enough=setting.n)
        kept = _lexsort(-crowding_distance(f, rank), rank)[: setting.n]
        return _keep(setting, noise, state.point, x, f, kept)

    return generation


def _nsga3(setting: Setting) -> Callable[[State, Noise], State]:
    def generation(state: State, noise: Noise) -> State:
        pool = (noise["mate"] * setting.n).to(torch.int64)
        x, f = setting.merged(state, setting.children(state.x[pool], noise))
        shuffled = noise["shuffle"].argsort(stable=True)
        x, f = x[shuffled], f[shuffled]
        references = torch.as_tensor(setting.references, dtype=f.dtype, device=f.device)
        kept = survivors(f, setting.n, references[noise["order"].argsort(stable=True)]).nonzero()[:, 0]
        return _keep(setting, noise, state.point, x, f, kept)

    return generation


def survivors(f: Float[Tensor, "two_n m"], n: int, references: Float[Tensor, "r m"]) -> Bool[Tensor, " two_n"]:
    """The n points that NSGA-III keeps: whole fronts, and of the last one those whose reference points are the emptiest.

    Sequentially, the emptiest reference point (the first of several) takes one point after the other: its nearest if it is
    empty, otherwise the first of its own. Its q-th point therefore comes when it holds what it held at first plus q, so all
    turns are known at once: sort by (points held, reference point) and cut. The paper keeps a table of candidates with a row
    for each reference point and goes through it level by level; the sorted list says the same in O(n) memory.

    Source: Deb and Jain 2014, algorithm 4; paper, section on TensorNSGA-III.
    """
    rank = non_dominated_rank(f, enough=n)
    worst = rank.sort().values[n - 1]
    sure, last = rank < worst, rank == worst
    nearest, distance = associate(normalise(f, rank <= worst), references)
    held = torch.zeros(len(references), dtype=torch.int64, device=f.device).index_add_(0, nearest, sure.to(torch.int64))
    own = torch.where(last, nearest, len(references))
    first = _nearest_of_each(own, distance, len(references)) & (held[nearest] == 0)
    queue = _lexsort(~first, own)
    turn = _place_in_group(own[queue])
    level = torch.where(last[queue], held[nearest[queue]] + turn, 2 * len(f))
    chosen = queue[level.argsort(stable=True)[: n - int(sure.sum())]]
    return sure.index_fill(0, chosen, True)


def normalise(f: Float[Tensor, "n m"], seen: Bool[Tensor, " n"]) -> Float[Tensor, "n m"]:
    """(f - ideal) / intercepts of the plane through the extreme points of the seen rows; their largest values where the
    extreme points span no plane that cuts every axis between 1e-6 and a million times its largest value (paper: where the
    matrix has no full rank)."""
    f = f - f[seen].amin(dim=0)
    m = f.shape[1]
    eye = torch.eye(m, dtype=f.dtype, device=f.device)
    scalar = torch.stack([(f / (row + 1e-6)).amax(dim=1) for row in eye])
    extreme = f[scalar.masked_fill(~seen, torch.inf).argmin(dim=1)]
    intercepts = 1 / torch.linalg.solve_ex(extreme, torch.ones_like(f[0]))[0]
    nadir = f[seen].amax(dim=0)
    within = (intercepts > 1e-6) & (intercepts < 1e6 * nadir)
    whole = (torch.linalg.matrix_rank(extreme) == m) & within.all()
    return f / torch.where(whole, intercepts, nadir.where(nadir > 1e-12, torch.ones_like(nadir)))


def associate(f: Float[Tensor, "n m"], references: Float[Tensor, "r m"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The reference line nearest to each point, which is the one at the smallest angle, and the distance
    to it in steps; in tiles."""
    unit = references / torch.linalg.norm(references, dim=1, keepdim=True)
    size = max(1, PAIRS // len(unit))
    length = torch.linalg.norm(f, dim=1, keepdim=True)
    direction = f / length.where(length > 0, 1)
    nearest = torch.cat([(some @ unit.mT).mul_(STEPS).round_().argmax(dim=1) for some in direction.split(size)])
    line = unit[nearest]
    distance = torch.linalg.norm(f - (f * line).sum(dim=1, keepdim=True) * line, dim=1)
    return nearest, (distance * STEPS).round()


def _nearest_of_each(group: Tensor, distance: Tensor, groups: int) -> Tensor:
    """Whether a row is the nearest of its group, the first of several; rows of group ``groups`` are in none."""
    index = torch.arange(len(group), device=group.device)
    least = distance.new_full((groups + 1,), torch.inf).scatter_reduce(0, group, distance, "amin")
    tied = index.where(distance == least[group], len(group))
    winner = torch.full((groups + 1,), len(group), device=group.device).scatter_reduce(0, group, tied, "amin")
    return (winner[group] == index) & (group < groups)


def _place_in_group(group: Tensor) -> Tensor:
    """0, 1, 2, ... within each run of equal entries."""
    index = torch.arange(len(group), device=group.device)
    return index - torch.searchsorted(group, group)


def _moead(setting: Setting) -> Callable[[State, Noise], State]:
    near = torch.from_numpy(setting.neighbours)
    slots: dict[Any, tuple[Tensor, ...]] = {}

    def generation(state: State, noise: Noise) -> State:
        kind = (state.f.dtype, state.f.device)
        if kind not in slots:
            w = torch.as_tensor(setting.weights, dtype=kind[0], device=kind[1])
            slots[kind] = (near.to(kind[1]), w, w[near].permute(2, 0, 1).contiguous())
        neighbours, own, theirs = slots[kind]
        n, t = neighbours.shape
        # The first two of a shuffled neighbourhood: any one, and any other one.
        one = (noise["mate"][:, 0] * t).to(torch.int64)
        two = (noise["mate"][:, 1] * (t - 1)).to(torch.int64)
        parents = neighbours.gather(1, torch.stack([one, two + (two >= one)], dim=1))
        x = setting.children(state.x[torch.cat([parents[:, 0], parents[:, 1]])], noise, half=True)
        f = setting.objectives(x)
        z = torch.minimum(state.point, f.amin(dim=0))
        old = aggregate(setting.aggregation, (state.f - z).mT, own.mT)
        new = aggregate(setting.aggregation, (f - z).mT[:, :, None], theirs)
        winner = _best_child(neighbours, old, new)
        taken = (winner < n)[:, None] if setting.selects else torch.ones(n, 1, dtype=torch.bool, device=f.device)
        winner = winner.clamp(max=n - 1) if setting.selects else torch.arange(n, device=f.device)
        return State(torch.where(taken, x[winner], state.x), torch.where(taken, f[winner], state.f), z)

    return generation


def _best_child(neighbours: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The child that each slot takes: of all that want it the one with the least value, the first of several; n if none is
    better than what the slot holds. Scattered minima take O(n t) where the paper's transposed matrix of indices takes O(n^2)."""
    n, t = neighbours.shape
    flat, value = neighbours.reshape(-1), new.reshape(-1)
    least = old.scatter_reduce(0, flat, value, "amin")
    child = torch.arange(n, device=flat.device).repeat_interleave(t)
    wins = (value == least[flat]) & (value < old[flat])
    return torch.full_like(flat[:n], n).scatter_reduce(0, flat, child.where(wins, n), "amin")


def _hype(setting: Setting) -> Callable[[State, Noise], State]:
    def generation(state: State, noise: Noise) -> State:
        n = setting.n
        fitness = shares(state.f, state.point, noise["mating"], n, n)
        x, f = setting.merged(state, setting.children(state.x[_tournament(fitness, noise["mate"])], noise))
        rank = non_dominated_rank(f, enough=n)
        # Ranks stop behind the last front that is wanted: all further points have one and the same, and come last.
        seen = int((rank <= rank.sort().values[n - 1]).sum())
        fitness = shares(f, state.point, noise["survival"], seen - n, 2 * n)
        kept = _lexsort(-fitness, rank)[:n]
        return _keep(setting, noise, state.point, x, f, kept)

    return generation


def shares(
    f: Float[Tensor, "n m"], corner: Float[Tensor, " m"], u: Float[Tensor, "s m"], removed: int, number: int
) -> Float[Tensor, " n"]:
    """HypE's fitness: the hypervolume that is expected to be lost with a point when ``removed`` of ``number`` points go."""
    low = f.amin(dim=0)
    span = (corner - low).clamp(min=0)
    alpha = torch.as_tensor(hype_weights(removed, number), dtype=f.dtype, device=f.device)
    return span.prod() * hype_fitness(f, low + u * span, alpha)


def hype_weights(removed: int, number: int) -> Float[np.ndarray, " levels"]:
    """alpha_0 = 0 and alpha_j = 1/j prod_{l=1}^{j-1} (removed - l) / (number - l), for j = 1 .. number (paper, TensorHypE)."""
    l = np.arange(1, number)
    chance = np.cumprod(np.append(1.0, np.maximum(removed - l, 0) / (number - l)))
    return np.round(np.append(0.0, chance / np.arange(1, number + 1)) * EXACT) / EXACT


def _keep(setting: Setting, noise: Noise, point: Tensor, x: Tensor, f: Tensor, kept: Tensor) -> State:
    if not setting.selects:
        kept = noise["lot"].argsort(stable=True)[: setting.n]
    return State(x[kept], f[kept], point)


def _tournament(fitness: Tensor, u: Float[Tensor, "n 2"]) -> Tensor:
    """Of two drawn individuals the one with the larger fitness, the first of equals."""
    one, two = (u * len(fitness)).to(torch.int64).unbind(dim=1)
    return torch.where(fitness[two] > fitness[one], two, one)


def _lexsort(second: Tensor, first: Tensor) -> Tensor:
    """Rows by the first key, and by the second where that is equal."""
    order = second.to(torch.int8).argsort(stable=True) if second.dtype == torch.bool else second.argsort(stable=True)
    return order[first[order].argsort(stable=True)]
