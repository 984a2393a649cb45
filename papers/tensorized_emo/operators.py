"""What all three algorithms do to a population, as one text for NumPy, PyTorch and JAX: crossover, mutation, reference points.

Every random number is a uniform one that is drawn outside and passed in, so that two frameworks, or an algorithm and its
sequential original, can see the same ones. One number a gene is enough: its leading digits decide what happens, the
digits behind them by how much.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

CROSSOVER_INDEX = 20
MUTATION_INDEX = 20
"""Distribution indices (paper, section on the experimental settings)."""


def simulated_binary(parents: Float[Any, "n d"], u: Float[Any, "pairs d"], *, half: bool = False) -> Float[Any, "children d"]:
    """Children (a + b)/2 +- beta (a - b)/2 of parents a and b, the i-th rows of the first and the second half of the pool.

        beta = (2 mu)^(1/21)  if mu <= 1/2  else  (2 - 2 mu)^(-1/21),  with a random sign, and 1 for every second gene

    ``half`` gives the + children alone, one for each pair. Of an odd pool the last parent has no partner and is its own child.

    Source: Deb and Agrawal 1995; paper, section on the common operators.
    """
    xp = array_namespace(parents)
    pairs = parents.shape[0] // 2
    a, b = parents[:pairs], parents[pairs : 2 * pairs]
    # Four equal ways (two signs, two kinds of gene), and how far within the way.
    mu = 4 * u
    way = xp.floor(mu)
    mu = mu - way
    spread = xp.where(mu <= 0.5, 2 * mu, 1 / xp.maximum(2 - 2 * mu, xp.full_like(mu, 1e-7))) ** (1 / (CROSSOVER_INDEX + 1))
    beta = xp.where(way < 2, xp.ones_like(spread), xp.where(way < 3, spread, -spread))
    middle, step = (a + b) / 2, beta * ((a - b) / 2)
    if half:
        return middle + step
    return xp.concat([middle + step, middle - step, parents[2 * pairs :]], axis=0)


def polynomial_mutation(
    x: Float[Any, "n d"], u: Float[Any, "n d"], lower: Float[Any, " d"], upper: Float[Any, " d"]
) -> Float[Any, "n d"]:
    """x clipped to its bounds, one gene of each row in the mean moved by delta of the range, and clipped again.

        delta = (2 mu + (1 - 2 mu)(1 - to lower)^21)^(1/21) - 1        if mu <= 1/2
                1 - (2 (1 - mu) + (2 mu - 1)(1 - to upper)^21)^(1/21)  otherwise

    Source: Deb and Goyal 1996; paper, section on the common operators.
    """
    xp = array_namespace(x)
    x = xp.minimum(xp.maximum(x, lower), upper)
    mu = u * x.shape[1]
    span = upper - lower
    down = mu <= 0.5
    room = 1 - xp.where(down, x - lower, upper - x) / span
    tail = xp.where(down, 2 * mu, 2 - 2 * mu)
    moved = (xp.maximum(tail + (1 - tail) * room ** (MUTATION_INDEX + 1), xp.zeros_like(tail))) ** (1 / (MUTATION_INDEX + 1)) - 1
    x = xp.where(mu < 1, x + xp.where(down, moved, -moved) * span, x)
    return xp.minimum(xp.maximum(x, lower), upper)


def reference_points(n: int, m: int) -> Float[np.ndarray, "at_most_n m"]:
    """The Das-Dennis points of the unit simplex: all multiples of 1/H that sum to 1, with the largest H for at most n points.

    Where H < m all of them lie on the border; then a second, smaller layer of what still fits lies inside, at w/2 + 1/(2 m).
    Zeros are replaced by 1e-6, so that a point can be divided by.

    Raises:
        ValueError: m below 2, or n too small for one point on each axis.

    Source: Das and Dennis 1998; Deb and Jain 2014 for the second layer.
    """
    if m < 2:
        raise ValueError(f"reference points for {m} objective; one objective needs no front: take a single-objective method")
    if n < m:
        raise ValueError(f"a population of {n} for {m} objectives; wanted at least {m}, one reference point for each objective")
    first = _divisions(n, m)
    points = _lattice(first, m)
    if first < m and (second := _divisions(n - len(points), m)):
        points = np.concatenate([points, _lattice(second, m) / 2 + 1 / (2 * m)])
    return np.maximum(points, 1e-6)


def _divisions(n: int, m: int) -> int:
    """The largest H with C(H + m - 1, m - 1) <= n, or 0."""
    h = 0
    while math.comb(h + m, m - 1) <= n:
        h += 1
    return h


def _lattice(h: int, m: int) -> np.ndarray:
    if m == 3:  # without a Python list of a million tuples
        i, j = np.meshgrid(np.arange(h + 1), np.arange(h + 1), indexing="ij")
        i, j = i[i + j <= h], j[i + j <= h]
        return np.stack([i, j, h - i - j], axis=1) / h
    bars = np.array(list(itertools.combinations(range(h + m - 1), m - 1)))
    edges = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), h + m - 1)], axis=1)
    return (np.diff(edges, axis=1) - 1) / h
