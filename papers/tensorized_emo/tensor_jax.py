"""NSGA-II, NSGA-III, MOEA/D and HypE on whole populations, in JAX: ``tensor_torch.py`` with fixed shapes.

What PyTorch selects by a mask keeps its place here, and is masked: a generation is one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from kernels.pareto import crowding_distance, hype_fitness, non_dominated_rank
from papers.tensorized_emo.settings import EXACT, STEPS, Noise, Setting, State, aggregate

PAIRS = 1 << 21
"""Pairs of a point and a reference point that are compared at once."""


def draw(setting: Setting, key: Array, dtype: Any = jnp.float32) -> dict[str, Array]:
    """The noise of one generation, drawn by JAX."""
    shapes = setting.noise()
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.uniform(each, shape, dtype) for each, (name, shape) in zip(keys, shapes.items(), strict=True)}


def step(setting: Setting) -> Callable[[State, Noise], State]:
    """One compiled generation of the setting's algorithm."""
    return jax.jit({"nsga2": _nsga2, "nsga3": _nsga3, "moead": _moead, "hype": _hype}[setting.algorithm](setting))


def own_noise(setting: Setting) -> Callable[[State, Array], State]:
    """One compiled generation that draws its noise from a key."""
    generation = step(setting)
    return jax.jit(lambda state, key: generation(state, draw(setting, key, state.f.dtype)))


def _nsga2(setting: Setting) -> Callable[[State, Noise], State]:
    def generation(state: State, noise: Noise) -> State:
        rank = non_dominated_rank(state.f)
        order = jnp.lexsort((-crowding_distance(state.f, rank), rank))
        better = jnp.zeros_like(rank).at[order].set(jnp.arange(len(rank), dtype=rank.dtype))
        children = setting.children(state.x[_tournament(-better, noise["mate"])], noise)
        x, f = setting.merged(state, children)
        rank = non_dominated_rank(f, enough=setting.n)
        kept = jnp.lexsort((-crowding_distance(f, rank), rank))[: setting.n]
        return _keep(setting, noise, state.point, x, f, kept)

    return generation


def _nsga3(setting: Setting) -> Callable[[State, Noise], State]:
    def generation(state: State, noise: Noise) -> State:
        pool = (noise["mate"] * setting.n).astype(jnp.int32)
        x, f = setting.merged(state, setting.children(state.x[pool], noise))
        shuffled = jnp.argsort(noise["shuffle"])
        x, f = x[shuffled], f[shuffled]
        references = jnp.asarray(setting.references, f.dtype)[jnp.argsort(noise["order"])]
        (kept,) = jnp.nonzero(survivors(f, setting.n, references), size=setting.n)
        return _keep(setting, noise, state.point, x, f, kept)

    return generation


def survivors(f: Float[Array, "two_n m"], n: int, references: Float[Array, "r m"]) -> Bool[Array, " two_n"]:
    """The n points that NSGA-III keeps; see ``tensor_torch.survivors``."""
    rank = non_dominated_rank(f, enough=n)
    worst = jnp.sort(rank)[n - 1]
    sure, last = rank < worst, rank == worst
    nearest, distance = associate(normalise(f, rank <= worst), references)
    held = jnp.zeros(len(references), jnp.int32).at[nearest].add(sure)
    own = jnp.where(last, nearest, len(references))
    first = _nearest_of_each(own, distance, len(references)) & (held[nearest] == 0)
    queue = jnp.lexsort((~first, own))
    turn = _place_in_group(own[queue])
    level = jnp.where(last[queue], held[nearest[queue]] + turn, 2 * len(f))
    wanted = jnp.arange(len(f)) < n - sure.sum()
    return sure.at[queue[jnp.argsort(level)]].max(wanted)


def normalise(f: Float[Array, "n m"], seen: Bool[Array, " n"]) -> Float[Array, "n m"]:
    f = f - jnp.where(seen[:, None], f, jnp.inf).min(axis=0)
    m = f.shape[1]
    scalar = jnp.stack([(f / (row + 1e-6)).max(axis=1) for row in jnp.eye(m, dtype=f.dtype)])
    extreme = f[jnp.where(seen, scalar, jnp.inf).argmin(axis=1)]
    intercepts = 1 / jnp.linalg.solve(extreme, jnp.ones_like(f[0]))
    nadir = jnp.where(seen[:, None], f, -jnp.inf).max(axis=0)
    within = (intercepts > 1e-6) & (intercepts < 1e6 * nadir)
    whole = (jnp.linalg.matrix_rank(extreme) == m) & within.all()
    return f / jnp.where(whole, intercepts, jnp.where(nadir > 1e-12, nadir, 1))


def associate(f: Float[Array, "n m"], references: Float[Array, "r m"]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    unit = references / jnp.linalg.norm(references, axis=1, keepdims=True)
    size = max(1, PAIRS // len(unit))
    length = jnp.linalg.norm(f, axis=1, keepdims=True)
    direction = f / jnp.where(length > 0, length, 1)
    nearest = lax.map(lambda row: jnp.round((unit @ row) * STEPS).argmax(), direction, batch_size=size).astype(jnp.int32)
    line = unit[nearest]
    return nearest, jnp.round(jnp.linalg.norm(f - (f * line).sum(axis=1, keepdims=True) * line, axis=1) * STEPS)


def _nearest_of_each(group: Array, distance: Array, groups: int) -> Array:
    index = jnp.arange(len(group))
    least = jnp.full(groups + 1, jnp.inf, distance.dtype).at[group].min(distance)
    tied = jnp.where(distance == least[group], index, len(group))
    winner = jnp.full(groups + 1, len(group)).at[group].min(tied)
    return (winner[group] == index) & (group < groups)


def _place_in_group(group: Array) -> Array:
    index = jnp.arange(len(group))
    fresh = jnp.concatenate([jnp.ones(1, bool), group[1:] != group[:-1]])
    return index - lax.cummax(jnp.where(fresh, index, 0))


def _moead(setting: Setting) -> Callable[[State, Noise], State]:
    near = setting.neighbours

    def generation(state: State, noise: Noise) -> State:
        # Behind a barrier, or the compiler gathers the weights of all neighbourhoods, and for thousands of points takes minutes.
        tables = jnp.asarray(near, jnp.int32), jnp.asarray(setting.weights, state.f.dtype)
        neighbours, own = lax.optimization_barrier(tables)
        n, t = neighbours.shape
        # The first two of a shuffled neighbourhood: any one, and any other one.
        one = (noise["mate"][:, 0] * t).astype(jnp.int32)
        two = (noise["mate"][:, 1] * (t - 1)).astype(jnp.int32)
        parents = jnp.take_along_axis(neighbours, jnp.stack([one, two + (two >= one)], axis=1), axis=1)
        x = setting.children(state.x[parents.T.reshape(-1)], noise, half=True)
        f = setting.objectives(x)
        z = jnp.minimum(state.point, f.min(axis=0))
        old = aggregate(setting.aggregation, list((state.f - z).T), list(own.T))
        theirs = own.T[:, neighbours]
        new = aggregate(setting.aggregation, list((f - z).T[:, :, None]), list(theirs))
        winner = _best_child(neighbours, old, new) if setting.selects else jnp.arange(n)
        taken, winner = (winner < n)[:, None], jnp.minimum(winner, n - 1)
        return State(jnp.where(taken, x[winner], state.x), jnp.where(taken, f[winner], state.f), z)

    return generation


def _best_child(neighbours: Array, old: Array, new: Array) -> Array:
    n, t = neighbours.shape
    flat, value = neighbours.reshape(-1), new.reshape(-1)
    least = old.at[flat].min(value)
    child = jnp.repeat(jnp.arange(n, dtype=jnp.int32), t)
    wins = (value == least[flat]) & (value < old[flat])
    return jnp.full(n, n, jnp.int32).at[flat].min(jnp.where(wins, child, n))


def _hype(setting: Setting) -> Callable[[State, Noise], State]:
    def generation(state: State, noise: Noise) -> State:
        n = setting.n
        fitness = shares(state.f, state.point, noise["mating"], n, n)
        x, f = setting.merged(state, setting.children(state.x[_tournament(fitness, noise["mate"])], noise))
        rank = non_dominated_rank(f, enough=n)
        seen = (rank <= jnp.sort(rank)[n - 1]).sum()
        fitness = shares(f, state.point, noise["survival"], seen - n, 2 * n)
        kept = jnp.lexsort((-fitness, rank))[:n]
        return _keep(setting, noise, state.point, x, f, kept)

    return generation


def shares(
    f: Float[Array, "n m"], corner: Float[Array, " m"], u: Float[Array, "s m"], removed: Any, number: Any
) -> Float[Array, " n"]:
    """HypE's fitness: the hypervolume that is expected to be lost with a point when ``removed`` of ``number`` points go."""
    low = f.min(axis=0)
    span = jnp.maximum(corner - low, 0)
    l = jnp.arange(1, len(f))
    # alpha_j = 1/j prod (removed - l) / (number - l); no sample is covered by more points than there are.
    factors = jnp.maximum(removed - l, 0) / jnp.maximum(number - l, 1)
    alpha = jnp.cumprod(jnp.append(jnp.ones(1, f.dtype), factors.astype(f.dtype))) / jnp.arange(1, len(f) + 1)
    alpha = jnp.round(jnp.append(jnp.zeros(1), alpha).astype(f.dtype) * EXACT) / EXACT
    return span.prod() * hype_fitness(f, low + u * span, alpha)


def _keep(setting: Setting, noise: Noise, point: Array, x: Array, f: Array, kept: Array) -> State:
    if not setting.selects:
        kept = jnp.argsort(noise["lot"])[: setting.n]
    return State(x[kept], f[kept], point)


def _tournament(fitness: Array, u: Float[Array, "n 2"]) -> Array:
    """Of two drawn individuals the one with the larger fitness, the first of equals."""
    one, two = (u * len(fitness)).astype(jnp.int32).T
    return jnp.where(fitness[two] > fitness[one], two, one)
