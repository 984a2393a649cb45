"""JAX: fixed shapes and bounded loops, over blocks and over fronts; all of it can be traced, mapped and compiled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int32

PAIRS = 1 << 20
"""Pairs that are compared at once where the caller names no block."""


@functools.partial(jax.jit, static_argnames="block")
def dominance_count(points: Float[Array, "n m"], by: Float[Array, "k m"], *, block: int | None = None) -> Int32[Array, " n"]:
    block = min(block or _rows(len(points)), max(len(by), 1))
    # Rows of NaN fill the last block: they dominate nothing.
    tiles = jnp.pad(by, ((0, -len(by) % block), (0, 0)), constant_values=jnp.nan).reshape(-1, block, by.shape[1])

    def add(count: Array, tile: Array) -> tuple[Array, None]:
        nowhere_worse = jnp.ones((len(points), len(tile)), bool)
        better = ~nowhere_worse
        for theirs, mine in zip(tile.T[:, None, :], points.T[:, :, None], strict=True):
            nowhere_worse &= theirs <= mine
            better |= theirs < mine
        return count + (nowhere_worse & better).sum(axis=1, dtype=jnp.int32), None

    return lax.scan(add, jnp.zeros(len(points), jnp.int32), tiles)[0]


@functools.partial(jax.jit, static_argnames=("enough", "block"))
def non_dominated_rank(points: Float[Array, "n m"], *, enough: int | None = None, block: int | None = None) -> Int32[Array, " n"]:
    n = len(points)
    if not n:
        return jnp.zeros(0, jnp.int32)
    block = min(block or max(32, min(_rows(n), 256)), n)
    enough = n if enough is None else enough
    # Rows with a NaN are put behind all others and never take part.
    whole = ~jnp.isnan(points).any(axis=1)
    points = jnp.where(whole[:, None], points, jnp.inf)
    order = jnp.lexsort((*points.T[::-1], ~whole))
    rows, live = points[order], whole[order]
    # In this order the later of two different rows never dominates the earlier, and the first objective has its say.
    fresh = (rows[1:] != rows[:-1]).any(axis=1)
    columns = [jnp.concatenate([jnp.zeros(1, bool), fresh]).cumsum(dtype=jnp.int32), *rows.T[1:]]

    def count(some: Array) -> Array:
        """How many of the rows of a mask dominate each row; the mask is packed, so only whole blocks of it are walked."""
        (place,) = jnp.nonzero(some, size=n, fill_value=0)
        place = jnp.pad(place, (0, -n % block))
        number = some.sum()

        def add(b: Array, total: Array) -> Array:
            rows = lax.dynamic_slice(place, (b * block,), (block,))
            inside = b * block + jnp.arange(block) < number
            better = inside & (columns[0][rows] < columns[0][:, None])
            for column in columns[1:]:
                better &= column[rows] <= column[:, None]
            return total + better.sum(axis=1, dtype=jnp.int32)

        return lax.fori_loop(0, (number + block - 1) // block, add, jnp.zeros(n, jnp.int32))

    def peel(state: tuple[Array, ...]) -> tuple[Array, ...]:
        c, left, rank, r = state
        front = left & (c == 0)
        return c - count(front), left & ~front, jnp.where(front, r, rank), r + 1

    def more(state: tuple[Array, ...]) -> Array:
        return state[1].any() & ((live & ~state[1]).sum() < enough)

    start: tuple[Array, ...] = (count(live), live, jnp.zeros(n, jnp.int32), jnp.int32(0))
    _, left, rank, r = lax.while_loop(more, peel, start)
    rank = jnp.where(left, r, jnp.where(live, rank, r + left.any()))
    return jnp.zeros(n, jnp.int32).at[order].set(rank.astype(jnp.int32))


@jax.jit
def crowding_distance(points: Float[Array, "n m"], rank: Int32[Array, " n"]) -> Float[Array, " n"]:
    n = len(points)
    distance = jnp.zeros(n, points.dtype)
    if not n:
        return distance
    for column in points.T:
        # Sorted by front and within it by value: the neighbours of a point are the rows beside it.
        order = jnp.lexsort((column, rank))
        values, front = column[order], rank[order]
        edge = jnp.concatenate([jnp.ones(1, bool), front[1:] != front[:-1], jnp.ones(1, bool)])
        group = edge[:-1].cumsum() - 1
        low, high = (f(values, group, n, indices_are_sorted=True) for f in (jax.ops.segment_min, jax.ops.segment_max))
        spread = (high - low)[group]
        gap = jnp.concatenate([jnp.zeros(1), values[2:] - values[:-2], jnp.zeros(1)])[:n].astype(values.dtype)
        gap = jnp.where(spread > 0, gap / jnp.where(spread > 0, spread, 1), 0)
        distance = distance.at[order].add(jnp.where(edge[:-1] | edge[1:], jnp.inf, gap))
    return distance


@functools.partial(jax.jit, static_argnames="block")
def hypervolume(
    points: Float[Array, "n m"], reference_point: Float[Array, " m"], *, block: int | None = None
) -> Float[Array, ""]:
    n = len(points)
    if not n:
        return jnp.zeros((), points.dtype)
    points = jnp.minimum(points, reference_point)
    points = points[jnp.argsort(points[:, 0])]
    width = jnp.append(points[1:, 0], reference_point[0]) - points[:, 0]
    if points.shape[1] == 2:
        return (width * (reference_point[1] - lax.cummin(points[:, 1]))).sum()
    level = jnp.sort(points[:, 2])
    depth = jnp.append(level[1:], reference_point[2]) - level
    block = min(block or _rows(n), n)
    # Slabs of no depth fill the last block.
    slabs = [jnp.pad(each, (0, -n % block)).reshape(-1, block) for each in (level, depth)]

    def add(volume: Array, slab: tuple[Array, ...]) -> tuple[Array, None]:
        seen = jnp.where(points[:, 2] <= slab[0][:, None], points[:, 1], reference_point[1])
        return volume + slab[1] @ ((reference_point[1] - lax.cummin(seen, axis=1)) @ width), None

    return lax.scan(add, jnp.zeros((), points.dtype), tuple(slabs))[0]


@functools.partial(jax.jit, static_argnames="block")
def hype_fitness(
    points: Float[Array, "n m"], samples: Float[Array, "s m"], alpha: Float[Array, " levels"], *, block: int | None = None
) -> Float[Array, " n"]:
    block = min(block or _rows(len(points)), len(samples))
    # Samples of NaN fill the last block: no point covers them.
    tiles = jnp.pad(samples, ((0, -len(samples) % block), (0, 0)), constant_values=jnp.nan).reshape(-1, block, points.shape[1])

    def add(fitness: Array, tile: Array) -> tuple[Array, None]:
        covers = (points[None] <= tile[:, None]).all(axis=2)
        weight = alpha[jnp.minimum(covers.sum(axis=1), len(alpha) - 1)].astype(fitness.dtype)
        return fitness + weight @ covers.astype(fitness.dtype), None

    return lax.scan(add, jnp.zeros(len(points), points.dtype), tiles)[0] / len(samples)


def _rows(n: int) -> int:
    return max(1, PAIRS // max(n, 1))
