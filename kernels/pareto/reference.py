"""The definitions, in NumPy: all pairs at once, and volumes by counting cells."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int32


def dominates(a: Float[np.ndarray, "k m"], b: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, "k n"]:
    return np.asarray((a[:, None] <= b[None]).all(axis=2) & (a[:, None] < b[None]).any(axis=2))


def dominance_count(points: Float[np.ndarray, "n m"], by: Float[np.ndarray, "k m"]) -> Int32[np.ndarray, " n"]:
    return dominates(by, points).sum(axis=0).astype(np.int32)


def non_dominated_rank(points: Float[np.ndarray, "n m"], *, enough: int | None = None) -> Int32[np.ndarray, " n"]:
    whole = ~np.isnan(points).any(axis=1)
    better, left = dominates(points, points), whole.copy()
    rank, r = np.zeros(len(points), np.int32), 0
    while left.any() and (enough is None or (whole & ~left).sum() < enough):
        front = left & ~better[left].any(axis=0)
        rank[front] = r
        left &= ~front
        r += 1
    rank[left] = r
    rank[~whole] = r + left.any()
    return rank


def crowding_distance(points: Float[np.ndarray, "n m"], rank: Int32[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    distance = np.zeros(len(points))
    for front in np.unique(rank):
        (rows,) = np.nonzero(rank == front)
        for values in points[rows].T:
            order = np.argsort(values, kind="stable")
            spread = values.max() - values.min()
            distance[rows[order[[0, -1]]]] = np.inf
            if spread > 0:
                distance[rows[order[1:-1]]] += (values[order[2:]] - values[order[:-2]]) / spread
    return distance


def hypervolume(points: Float[np.ndarray, "n m"], reference_point: Float[np.ndarray, " m"]) -> Float[np.ndarray, ""]:
    """The coordinates of all points cut the box into cells; a cell counts if a point lies at or below its lower corner."""
    points = np.minimum(points, reference_point)
    edges = [np.append(np.unique(points[:, k]), reference_point[k]) for k in range(points.shape[1])]
    lower = np.array(list(itertools.product(*(each[:-1] for each in edges)))).reshape(-1, points.shape[1])
    sizes = np.array(list(itertools.product(*(np.diff(each) for each in edges)))).reshape(lower.shape)
    covered = np.any((points[None] <= lower[:, None]).all(axis=2), axis=1)
    return np.asarray((sizes.prod(axis=1) * covered).sum())


def hype_fitness(
    points: Float[np.ndarray, "n m"], samples: Float[np.ndarray, "s m"], alpha: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, " n"]:
    covers = (points[None] <= samples[:, None]).all(axis=2)
    weight = alpha[np.minimum(covers.sum(axis=1), len(alpha) - 1)]
    return (covers * weight[:, None]).sum(axis=0) / len(samples)
