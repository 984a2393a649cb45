"""What an algorithm works on: the problem, the population's size, and the random numbers of a generation, by name and shape;
and the steps that the tensor forms share, as one text for NumPy, PyTorch and JAX."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int

from common.ops import framework, readable
from papers.tensorized_emo.operators import polynomial_mutation, reference_points, simulated_binary
from papers.tensorized_emo.problems import Problem

ALGORITHMS = {"nsga2": "NSGA-II", "nsga3": "NSGA-III", "moead": "MOEA/D", "hype": "HypE"}

CORNER = 1.2
"""HypE's reference point over the largest first objective (paper, section on TensorHypE)."""

WORST = 1e30
"""Stands for objectives that are no numbers: behind all others, and finite, so that the difference of two is a number too."""

STEPS = 2.0**30
"""Cosines and distances to reference lines are compared in steps of 1/STEPS: a point midway between two lines belongs to
the first of them, whatever the last bit of a sum says."""

EXACT = 2.0**39
"""HypE's weights are multiples of 1/EXACT: in float64 their sums over up to 2^14 samples are exact, in whatever order they
are taken, so that points which share all their samples are equal. The error, 1e-12, is far below that of sampling."""

Noise = Mapping[str, Any]
"""Uniform random numbers of one generation, by the names of :meth:`Setting.noise`."""


class State(NamedTuple):
    """A population between two generations.

    Attributes:
        x: decision vectors (n, d).   f: their objectives (n, m).
        point: (m,) MOEA/D's ideal point, the best value so far of each objective; HypE's reference point; zeros otherwise.
    """

    x: Any
    f: Any
    point: Any


@dataclass(frozen=True, eq=False)
class Setting:
    """An algorithm on a problem.

    Attributes:
        size: individuals asked for. MOEA/D has one for each reference point, so at most so many.
        samples: HypE's samples of an estimate.
        aggregation: MOEA/D's, of pbi, tchebycheff, weighted_sum.
        selects: False: survivors are drawn by lot, and nothing is selected; a control.

    Raises:
        ValueError: an unknown name; a population below 2, or for MOEA/D below 11, whose neighbourhoods would hold one.
    """

    algorithm: str
    problem: Problem
    size: int
    samples: int = 10_000
    aggregation: str = "pbi"
    selects: bool = True

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"there is no algorithm {self.algorithm!r}; there are {', '.join(ALGORITHMS)}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"there is no aggregation {self.aggregation!r}; there are {', '.join(AGGREGATIONS)}")
        if self.size < 2 or self.samples < 1:
            raise ValueError(f"a population of {self.size} and {self.samples} samples; wanted at least 2 and 1")
        if self.algorithm == "moead" and self.n < 11:
            raise ValueError(
                f"MOEA/D with {self.n} reference points for a population of {self.size}: its neighbourhoods hold a tenth, "
                "and two parents are needed; wanted at least 11 points"
            )
        if self.algorithm == "nsga3":
            _ = self.references  # raises if there is not one reference point for each objective

    @property
    def n(self) -> int:
        return len(self.references) if self.algorithm == "moead" else self.size

    @cached_property
    def references(self) -> Float[np.ndarray, "r m"]:
        return reference_points(self.size, self.problem.m)

    @cached_property
    def neighbours(self) -> Int[np.ndarray, "r t"]:
        """The ceil(n / 10) reference points nearest to each, itself first (paper, section on TensorMOEA/D)."""
        from scipy.spatial import cKDTree

        near = cKDTree(self.references).query(self.references, math.ceil(self.n / 10))[1]
        return near.reshape(self.n, -1)

    @cached_property
    def weights(self) -> Float[np.ndarray, "r m"]:
        """MOEA/D's weight vectors as the aggregation takes them."""
        w = self.references
        return w / np.linalg.norm(w, axis=1, keepdims=True) if self.aggregation == "pbi" else w

    def noise(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the uniform random numbers that one generation takes."""
        n, d, m = self.n, self.problem.d, self.problem.m
        pairs = n if self.algorithm == "moead" else n // 2
        own: dict[str, dict[str, tuple[int, ...]]] = {
            "nsga2": {"mate": (n, 2)},
            "nsga3": {"mate": (n,), "shuffle": (2 * n,), "order": (len(self.references),)} if self.algorithm == "nsga3" else {},
            "moead": {"mate": (n, 2)},
            "hype": {"mate": (n, 2), "mating": (self.samples, m), "survival": (self.samples, m)},
        }
        return {"cross": (pairs, d), "mutate": (n, d), **own[self.algorithm]} | ({} if self.selects else {"lot": (2 * n,)})

    def draw(self, rng: np.random.Generator, dtype: Any = np.float64) -> dict[str, np.ndarray]:
        return {name: rng.random(shape, dtype) for name, shape in self.noise().items()}

    def objectives(self, x: Float[Any, "n d"]) -> Float[Any, "n m"]:
        """The problem's objectives. A row with one that is no number, or above WORST, is set to WORST: it is ranked last, never
        in front for being incomparable. This warns where values can be read, which is not within a compiled program."""
        f = self.problem.evaluate(x)
        xp = array_namespace(f)
        sound = f <= WORST
        if readable(f):
            if bool(xp.all(sound)):
                return f
            warnings.warn(f"{self.problem.name}: some objectives are no numbers; these rows are ranked last", stacklevel=2)
        return xp.where(xp.all(sound, axis=1)[:, None], f, xp.full_like(f, WORST))

    def bounds(self, like: Any) -> tuple[Any, Any]:
        """The bounds of the genes, in the framework and type of ``like``."""
        return beside(self.problem.lower, like), beside(self.problem.upper, like)

    def start(self, rng: np.random.Generator) -> State:
        """The first population, uniform within the bounds, in NumPy."""
        lower, upper = self.problem.lower, self.problem.upper
        x = lower + rng.random((self.n, self.problem.d)) * (upper - lower)
        f = self.objectives(x)
        sound = f[f < WORST]
        points = {"moead": f.min(axis=0), "hype": np.full(self.problem.m, CORNER * sound.max(initial=0.0))}
        return State(x, f, points.get(self.algorithm, np.zeros(self.problem.m)))

    def children(self, pool: Float[Any, "n d"], noise: Noise, half: bool = False) -> Float[Any, "children d"]:
        """Crossed and mutated, pairs of parents being the rows of both halves of the pool."""
        made = simulated_binary(pool, noise["cross"], half=half)
        return polynomial_mutation(made, noise["mutate"], *self.bounds(made))

    def merged(self, state: State, children: Float[Any, "k d"]) -> tuple[Float[Any, "n_k d"], Float[Any, "n_k m"]]:
        """Parents and children: decision vectors and objectives."""
        xp = array_namespace(children)
        return xp.concat([state.x, children]), xp.concat([state.f, self.objectives(children)])


def beside(values: np.ndarray, like: Any) -> Any:
    """An array of numbers in the framework, type and place of ``like``."""
    if framework(like) == "torch":
        return like.new_tensor(values)
    return array_namespace(like).asarray(values, dtype=like.dtype)


def _pbi(f: Any, w: Any, xp: Any) -> Any:
    along = sum(a * b for a, b in zip(f, w, strict=True))
    return along + 5 * xp.sqrt(sum((a - along * b) ** 2 for a, b in zip(f, w, strict=True)))


def _tchebycheff(f: Any, w: Any, xp: Any) -> Any:
    largest = f[0] * w[0]
    for a, b in zip(f[1:], w[1:], strict=True):
        largest = xp.maximum(largest, a * b)
    return largest


AGGREGATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "pbi": _pbi,
    "tchebycheff": _tchebycheff,
    "weighted_sum": lambda f, w, xp: sum(a * b for a, b in zip(f, w, strict=True)),
}


def aggregate(name: str, f: Any, weights: Any) -> Any:
    """One number for each pair of objectives (relative to the ideal point) and weight vector; smaller is better.

        pbi           d1 + 5 d2,   d1 = f.w / |w|,  d2 = |f - d1 w / |w||
        tchebycheff   max_k f_k w_k            weighted_sum   sum_k f_k w_k

    ``f`` and ``weights`` are sequences of m arrays that broadcast; for pbi the weights have length 1 already.

    Source: Zhang and Li 2007; paper, section on TensorMOEA/D.
    """
    return AGGREGATIONS[name](f, weights, array_namespace(f[0]))
