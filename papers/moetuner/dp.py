"""The exact optimum of the second program, by dynamic programming over permutations.

The objective couples neighbouring layers alone. With the assignment of a layer as state there are G! states and (G!)^2 moves
between two layers, so L (G!)^2 evaluations are exact: 576 a layer for 4 GPUs. Where groups differ in size, equal memory couples all
layers; then the experts that every GPU holds so far belong to the state, of which few different ones can still come out even.
"""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
from jaxtyping import Float, Int, Int64

from common.ilp import Status
from papers.moetuner.ilp import Found, Objective, cost, reduce, slowness


class UnevenMemory(ValueError):
    """No assignment gives every GPU as many experts as any other."""


LARGEST = 6
"""GPUs; 720 x 720 moves between two layers."""


def assign(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    sizes: Int[np.ndarray, "layer group"] | None = None,
    *,
    objective: Objective = Objective.pair,
) -> Found:
    """As :func:`papers.moetuner.ilp.assign`, without a solver.

    Raises:
        UnevenMemory: the groups cannot be dealt so that every GPU has as many experts as any other.
        ValueError: more than :data:`LARGEST` GPUs, or as for the program.
    """
    start, count = time.perf_counter(), exchange.shape[1]
    if count > LARGEST:
        raise ValueError(
            f"{count} GPUs have {math.factorial(count):,} assignments of a layer; wanted up to {LARGEST} GPUs: take the program or the search"
        )
    if sizes is None or (sizes == sizes[0, 0]).all():
        sizes = np.zeros((len(exchange) + 1, count), np.int64)
    if sizes.sum() % count:
        raise ValueError(f"{sizes.sum()} experts on {count} GPUs do not come out even; give sizes=None")
    slow = slowness(bandwidth)
    by_group = np.array(list(itertools.permutations(range(count))))  # the GPU of every group
    by_gpu = np.argsort(by_group, axis=1)  # the group of every GPU
    grown = sizes[:, by_gpu]  # what every GPU gets, by layer and permutation
    room = _room(sizes)

    cheapest, held = np.zeros((len(by_group), 1)), np.zeros((1, count), np.int64)
    cheapest, held, origin = _put(cheapest, held, grown[0], room[0])
    steps = []
    for gap, each in enumerate(exchange):
        step = _moves(each, slow, by_gpu, objective)
        parent = np.stack([(cheapest + step[:, q, None]).argmin(axis=0) for q in range(len(by_group))])
        reached = np.take_along_axis(cheapest, parent, axis=0) + np.take_along_axis(step.T, parent, axis=1)
        cheapest, held, origin = _put(reached, held, grown[gap + 1], room[gap + 1])
        steps.append((parent, origin))
    if not np.isfinite(cheapest).any():
        raise UnevenMemory(
            f"no assignment gives each of {count} GPUs {sizes.sum() // count} experts; give sizes=None, or equal groups"
        )
    last, state = np.unravel_index(cheapest.argmin(), cheapest.shape)
    path = [last]
    for parent, origin in reversed(steps):
        state = origin[path[-1], state]
        path.append(parent[path[-1], state])
    place = by_group[path[::-1]]
    value = float(cost(exchange, bandwidth, place, objective).sum())
    return Found(place, value, value, Status.OPTIMAL, time.perf_counter() - start)


def _moves(
    exchange: Int[np.ndarray, "group group"],
    slow: Float[np.ndarray, "gpu gpu"],
    by_gpu: Int[np.ndarray, "way gpu"],
    objective: Objective,
) -> Float[np.ndarray, "way way"]:
    """The objective between two layers for every two permutations."""
    return np.stack([reduce(exchange[one[:, None], by_gpu[:, None, :]] * slow, objective) for one in by_gpu])


def _room(sizes: Int[np.ndarray, "layer group"]) -> list[tuple[int, int]]:
    """Least and most experts that a GPU may hold after each layer, if it is to hold its share in the end."""
    share = int(sizes.sum()) // sizes.shape[1]
    behind = [
        (int(sizes[layer + 1 :].max(axis=1).sum()), int(sizes[layer + 1 :].min(axis=1).sum())) for layer in range(len(sizes))
    ]
    return [(share - most, share - least) for most, least in behind]


def _put(
    cheapest: Float[np.ndarray, "way state"],
    held: Int[np.ndarray, "state gpu"],
    grown: Int[np.ndarray, "way gpu"],
    room: tuple[int, int],
) -> tuple[Float[np.ndarray, "way new"], Int64[np.ndarray, "new gpu"], Int64[np.ndarray, "way new"]]:
    """Add a layer's experts to what GPUs hold; states that cannot come out even any more go. Also where each came from."""
    after = held[None] + grown[:, None]
    fits = ((after >= room[0]) & (after <= room[1])).all(axis=2)
    kept, new = np.unique(after[fits], axis=0, return_inverse=True)
    way, state = np.nonzero(fits)
    cost_after, origin = np.full((len(grown), len(kept)), np.inf), np.zeros((len(grown), len(kept)), np.int64)
    cost_after[way, new] = cheapest[way, state]
    origin[way, new] = state
    return cost_after, kept, origin
