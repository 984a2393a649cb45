"""The algorithms as they were published: loops over individuals, in Python, with NumPy within an individual's own step.

They are oracle and baseline. They take the same random numbers as the tensor forms, so NSGA-II, NSGA-III and HypE must end
with the same population; MOEA/D updates its neighbourhoods one child after the other and may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from papers.tensorized_emo.operators import polynomial_mutation, simulated_binary
from papers.tensorized_emo.settings import EXACT, STEPS, Noise, Setting, State, aggregate

Rows = Float[np.ndarray, "_ _"]


def step(setting: Setting) -> Callable[[State, Noise], State]:
    return {"nsga2": _nsga2, "nsga3": _nsga3, "moead": _moead, "hype": _hype}[setting.algorithm](setting)


def fronts(f: Rows, enough: int) -> list[list[int]]:
    """Deb's fast non-dominated sort: a list of fronts, until they hold enough points."""
    beats, number = [], np.zeros(len(f), int)
    for row in f:
        beats.append(np.flatnonzero((row <= f).all(axis=1) & (row < f).any(axis=1)))
        number[beats[-1]] += 1
    beaten = number.tolist()
    found, front = [], [i for i, dominating in enumerate(beaten) if dominating == 0]
    while front:
        found.append(front)
        if sum(map(len, found)) >= enough:
            break
        following = []
        for i in front:
            for j in beats[i].tolist():
                beaten[j] -= 1
                if beaten[j] == 0:
                    following.append(j)
        front = sorted(following)
    return found


def crowding(f: Rows, front: list[int]) -> dict[int, float]:
    distance = dict.fromkeys(front, 0.0)
    for k in range(f.shape[1]):
        order = sorted(front, key=lambda i: f[i, k])
        spread = f[order[-1], k] - f[order[0], k]
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            if spread > 0:
                distance[i] += (f[after, k] - f[before, k]) / spread
        distance[order[0]] = distance[order[-1]] = math.inf
    return distance


def niching(f: Rows, n: int, references: Float[np.ndarray, "r m"]) -> Bool[np.ndarray, " two_n"]:
    """Algorithms 1 to 4 of Deb and Jain 2014: the emptiest reference point takes one point at a time."""
    found = fronts(f, n)
    seen = np.array(sorted(i for front in found for i in front))
    kept = {i for front in found[:-1] for i in front}
    scaled = normalise(f, seen)
    unit = references / np.linalg.norm(references, axis=1, keepdims=True)
    nearest: dict[int, int] = {}
    distance: dict[int, float] = {}
    for i in seen.tolist():
        nearest[i] = int(np.round(unit @ scaled[i] / (np.linalg.norm(scaled[i]) or 1) * STEPS).argmax())
        line = unit[nearest[i]]
        distance[i] = float(np.round(np.linalg.norm(scaled[i] - (scaled[i] @ line) * line) * STEPS))
    held = np.zeros(len(references))
    for i in kept:
        held[nearest[i]] += 1
    waiting: dict[int, list[int]] = {}
    for i in sorted(found[-1]):
        waiting.setdefault(nearest[i], []).append(i)
    held[[j for j in range(len(references)) if j not in waiting]] = math.inf
    while len(kept) < n:
        j = int(held.argmin())
        mine = waiting[j]
        i = min(mine, key=lambda each: distance[each]) if held[j] == 0 else mine[0]
        kept.add(i)
        mine.remove(i)
        held[j] = held[j] + 1 if mine else math.inf
    return np.isin(np.arange(len(f)), list(kept))


def normalise(f: Rows, seen: Int[np.ndarray, " s"]) -> Rows:
    f = f - f[seen].min(axis=0)
    m = f.shape[1]
    extreme = []
    for k in range(m):
        axis = np.full(m, 1e-6)
        axis[k] += 1
        extreme.append(f[seen[(f[seen] / axis).max(axis=1).argmin()]])
    nadir = f[seen].max(axis=0)
    if np.linalg.matrix_rank(extreme) == m:
        with np.errstate(divide="ignore"):
            intercepts = 1 / np.linalg.solve(extreme, np.ones(m))
        if (intercepts > 1e-6).all() and (intercepts < 1e6 * nadir).all():
            return f / intercepts
    return f / np.where(nadir > 1e-12, nadir, 1.0)


def _nsga2(setting: Setting) -> Callable[[State, Noise], State]:
    n = setting.n

    def crowded_order(f: Rows, enough: int) -> list[int]:
        order: list[int] = []
        for front in fronts(f, enough):
            distance = crowding(f, front)
            order += sorted(front, key=lambda i: -distance[i])
        return order

    def generation(state: State, noise: Noise) -> State:
        place = np.empty(n, int)
        place[crowded_order(state.f, n)] = np.arange(n)
        x, f = _merged(setting, state, _children(setting, state.x, _tournament(-place, noise["mate"]), noise))
        kept = crowded_order(f, n)[:n]
        return State(x[kept], f[kept], state.point)

    return generation


def _nsga3(setting: Setting) -> Callable[[State, Noise], State]:
    n = setting.n

    def generation(state: State, noise: Noise) -> State:
        pool = [int(u * n) for u in noise["mate"]]
        x, f = _merged(setting, state, _children(setting, state.x, pool, noise))
        shuffled = noise["shuffle"].argsort(kind="stable")
        x, f = x[shuffled], f[shuffled]
        kept = niching(f, n, setting.references[noise["order"].argsort(kind="stable")])
        return State(x[kept], f[kept], state.point)

    return generation


def _moead(setting: Setting) -> Callable[[State, Noise], State]:
    n, neighbours, w = setting.n, setting.neighbours, setting.weights
    near = [np.ascontiguousarray(w[row].T) for row in neighbours]

    def generation(state: State, noise: Noise) -> State:
        x, f, z = state.x.copy(), state.f.copy(), state.point
        t = neighbours.shape[1]
        for i in range(n):
            one, two = int(noise["mate"][i, 0] * t), int(noise["mate"][i, 1] * (t - 1))
            parents = x[neighbours[i, [one, two + (two >= one)]]]
            child, value = _one(setting, parents, noise["cross"][i : i + 1], noise["mutate"][i : i + 1], half=True)
            z = np.minimum(z, value[0])
            old = aggregate(setting.aggregation, (f[neighbours[i]] - z).T, near[i])
            new = aggregate(setting.aggregation, (value[0] - z)[:, None], near[i])
            slots = neighbours[i, new < old]
            x[slots], f[slots] = child[0], value[0]
        return State(x, f, z)

    return generation


def _hype(setting: Setting) -> Callable[[State, Noise], State]:
    n = setting.n

    def generation(state: State, noise: Noise) -> State:
        fitness = shares(state.f, state.point, noise["mating"], n)
        x, f = _merged(setting, state, _children(setting, state.x, _tournament(fitness, noise["mate"]), noise))
        found = fronts(f, n)
        fitness = shares(f, state.point, noise["survival"], sum(map(len, found)) - n)
        kept = [i for front in found for i in sorted(front, key=lambda i: -fitness[i])][:n]
        return State(x[kept], f[kept], state.point)

    return generation


def shares(f: Rows, corner: Float[np.ndarray, " m"], u: Float[np.ndarray, "s m"], removed: int) -> Float[np.ndarray, " n"]:
    """HypE's estimate (Bader and Zitzler 2011): for each point the samples that it covers, each by how many share it."""
    low, number = f.min(axis=0), len(f)
    span = np.maximum(corner - low, 0)
    # A row for each objective, so that the comparisons of one point run over memory that lies together.
    samples = np.ascontiguousarray((low + u * span).T)
    covers = []
    for row in f:
        inside = samples[0] >= row[0]
        for value, column in zip(row[1:], samples[1:], strict=True):
            inside &= column >= value
        covers.append(np.flatnonzero(inside))
    depth = np.zeros(len(u), int)
    for inside in covers:
        depth[inside] += 1
    alpha, chance = [0.0], 1.0
    for j in range(1, number + 1):
        alpha.append(round(chance / j * EXACT) / EXACT)
        chance *= max(removed - j, 0) / max(number - j, 1)
    weight = np.array(alpha)[depth]
    return np.array([weight[inside].sum() for inside in covers]) * span.prod() / len(u)


def _children(setting: Setting, x: Rows, pool: list[int], noise: Noise) -> tuple[Rows, Rows]:
    """One pair of parents after the other: cross, mutate, evaluate."""
    pairs = len(pool) // 2
    plus, minus = [], []
    for i in range(pairs):
        rows = np.stack([noise["mutate"][i], noise["mutate"][pairs + i]])
        made = _one(setting, x[[pool[i], pool[pairs + i]]], noise["cross"][i : i + 1], rows)
        plus.append([each[0] for each in made])
        minus.append([each[1] for each in made])
    if len(pool) % 2:
        made = _one(setting, x[[pool[-1]]], noise["cross"][:0], noise["mutate"][-1:])
        minus.append([each[0] for each in made])
    both = plus + minus
    return np.array([each[0] for each in both]), np.array([each[1] for each in both])


def _one(setting: Setting, parents: Rows, cross: Rows, mutate: Rows, half: bool = False) -> tuple[Rows, Rows]:
    child = simulated_binary(parents, cross, half=half)
    child = polynomial_mutation(child, mutate, setting.problem.lower, setting.problem.upper)
    return child, setting.objectives(child)


def _merged(setting: Setting, state: State, children: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    return np.concatenate([state.x, children[0]]), np.concatenate([state.f, children[1]])


def _tournament(fitness: np.ndarray, u: Float[np.ndarray, "n 2"]) -> list[int]:
    pool = []
    for pair in u:
        one, two = int(pair[0] * len(fitness)), int(pair[1] * len(fitness))
        pool.append(two if fitness[two] > fitness[one] else one)
    return pool
