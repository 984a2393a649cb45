"""Mélange's integer program: slices of the workload onto types of GPU, at the least cost.

    min sum_j c_j b_j   with   every slice on one type,   load of type j  <=  b_j

A bucket's rate is cut into f equal slices; the load of a slice on a type is its rate over the rate that one GPU of the type
sustains. Only the type is decided: the balancer may split a type's load over its GPUs (paper, section on the allocation).

The f slices of a bucket are alike, so it is enough to count how many of them go to each type: n[bucket, type] in 0..f instead of
f binaries, the same optimum without f! equal solutions for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from common.ilp import Model, Solution, Status


@dataclass(frozen=True)
class Problem:
    """What is to be served and by what.

    Attributes:
        rates: {type: requests a second that one GPU sustains, by bucket; 0: forbidden}, arrays of the shape of ``shares``.
        prices: {type: dollars an hour}.
        shares: of each bucket in the workload; they sum to 1.
        total: requests a second.
        objective: the latency objective in seconds, for messages.
        inputs, outputs: upper edges of the buckets, for messages.

    Raises:
        ValueError: what does not fit together, or a bucket that no type serves.
    """

    rates: Mapping[str, Float[np.ndarray, "*cells"]]
    prices: Mapping[str, float]
    shares: Float[np.ndarray, "*cells"]
    total: float
    objective: float = math.nan
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shares = self.shares
        if not self.rates:
            raise ValueError("there are no types of GPU; give the rates of at least one")
        if missing := [name for name in self.rates if name not in self.prices]:
            raise ValueError(f"{missing[0]} has no price; prices are known of {', '.join(self.prices)}")
        if bad := [name for name in self.rates if not (math.isfinite(self.prices[name]) and self.prices[name] > 0)]:
            raise ValueError(f"the price of {bad[0]} is {self.prices[bad[0]]}; wanted dollars an hour above 0")
        for name, table in self.rates.items():
            if table.shape != shares.shape:
                raise ValueError(
                    f"the rates of {name} have shape {table.shape}, the shares {shares.shape}; wanted the same buckets"
                )
            if not np.isfinite(table).all() or (table < 0).any():
                raise ValueError(f"the rates of {name} hold a negative or no number; wanted 0 where a bucket cannot be served")
        if not np.isfinite(shares).all() or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
            raise ValueError(f"the shares sum to {shares.sum():.6g}, least {shares.min():g}; wanted shares from 0 that sum to 1")
        if not (math.isfinite(self.total) and self.total > 0):
            raise ValueError(f"the rate is {self.total}; wanted requests a second above 0")
        unserved = (shares > 0) & (np.max(np.stack(list(self.rates.values())), axis=0) == 0)
        if unserved.any():
            where = tuple(int(each) for each in np.argwhere(unserved)[0])
            raise ValueError(
                f"infeasible: no type serves {self.bucket(where)} within {1e3 * self.objective:g} ms a token, and "
                f"{shares[where]:.2g} of the requests are there; add a type, relax the objective or cut the requests"
            )

    def bucket(self, where: tuple[int, ...]) -> str:
        """A bucket in words."""
        if len(where) == 2 and self.inputs and self.outputs:
            return f"bucket {where} (up to {self.inputs[where[0]]} tokens in, {self.outputs[where[1]]} out)"
        return f"bucket {where}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.rates)

    @cached_property
    def used(self) -> np.ndarray:
        """Which buckets have requests; all arrays below have these alone."""
        return self.shares > 0

    @cached_property
    def price(self) -> Float[np.ndarray, " type"]:
        return np.array([self.prices[name] for name in self.names], float)

    @cached_property
    def load(self) -> Float[np.ndarray, "bucket type"]:
        """GPUs that a whole bucket fills; inf where the type cannot serve it."""
        rates = np.stack([self.rates[name][self.used] for name in self.names], axis=1)
        wanted = (self.shares[self.used] * self.total)[:, None]
        return np.divide(wanted, rates, out=np.full(rates.shape, np.inf), where=rates > 0)


@dataclass(frozen=True)
class Fleet:
    """An allocation.

    Attributes:
        gpus: {type: number}.
        cost: dollars an hour.
        split: the part of each bucket (of those with requests) that goes to each type.
        solution: what the solver said, or None for a baseline.
    """

    gpus: dict[str, int]
    cost: float
    split: Float[np.ndarray, "bucket type"]
    solution: Solution | None = None


def allocate(
    problem: Problem,
    slices: int = 8,
    *,
    aggregated: bool = True,
    available: Mapping[str, int] | None = None,
    spare: int = 0,
    budget: float | None = None,
    solver: str = "highs",
    time_limit: int | float = math.inf,
) -> Fleet:
    """The cheapest fleet.

    Args:
        slices: f, into which each bucket is cut.
        aggregated: count the slices of a bucket; False: a binary for each, as the paper writes it.
        available: most GPUs of a type that can be had.
        spare: GPUs of each type in use that may fail: its load fits on the others.
        budget: dollars an hour.
        solver: of :meth:`common.ilp.Model.solve`.

    Raises:
        ValueError: slices or spare out of range, an unknown type in ``available``, or no fleet: with what contradicts what.
    """
    model = build(problem, slices, aggregated=aggregated, available=available, spare=spare, budget=budget)
    solution = model.solve(solver=solver, time_limit=time_limit)
    if solution.status not in (Status.OPTIMAL, Status.FEASIBLE):
        raise ValueError(f"no fleet: {solution}")
    counts = solution["slices"]
    if not aggregated:
        counts = counts.reshape(-1, slices, len(problem.names)).sum(axis=1)
    gpus = {name: int(count) for name, count in zip(problem.names, solution["fleet"], strict=True)}
    return Fleet(gpus, solution.objective, counts / slices, solution)


def build(
    problem: Problem,
    slices: int,
    *,
    aggregated: bool = True,
    available: Mapping[str, int] | None = None,
    spare: int = 0,
    budget: float | None = None,
) -> Model:
    """The program of :func:`allocate`, unsolved."""
    if slices < 1 or spare < 0:
        raise ValueError(f"slices is {slices} and spare {spare}; wanted at least one slice of a bucket and spare from 0")
    if unknown := set(available or {}) - set(problem.names):
        raise ValueError(f"{sorted(unknown)[0]} is said to be available, but there are {', '.join(problem.names)}")
    load, types = problem.load / slices, len(problem.names)
    most, whole = (slices, slices) if aggregated else (1, 1)
    load = load if aggregated else np.repeat(load, slices, axis=0)
    model = Model()
    possible = np.isfinite(load)
    count = model.integers("slices", load.shape, high=np.where(possible, most, 0))
    fleet = model.integers("fleet", (types,))
    filled = (count * np.where(possible, load, 0.0)).sum(axis=0)
    model.require("every request is served", count.sum(axis=1) == whole)
    if spare:
        # A type in use has its spare GPUs on top of its load; a type that is not in use has none.
        use = model.binaries("in use", (types,))
        model.require("the load fits", filled <= fleet - spare * use)
        model.require("a type with slices is in use", count <= most * use[None, :])
    else:
        model.require("the load fits", filled <= fleet)
    for name, number in (available or {}).items():
        model.require(f"availability of {name}", fleet[problem.names.index(name)] <= number)
    cost = (fleet * problem.price).sum()
    if budget is not None:
        model.require("budget", cost <= budget)
    model.minimise(cost)
    return model


def single(problem: Problem, name: str) -> Fleet | None:
    """All requests on one type: its load, rounded up. None if a bucket cannot be served by it."""
    split = np.zeros(problem.load.shape)
    split[:, problem.names.index(name)] = 1
    return _filled(problem, split)


def greedy(problem: Problem) -> Fleet | None:
    """Every bucket to the type on which its load costs least; loads rounded up at the end."""
    return _filled(problem, np.eye(len(problem.names))[np.argmin(problem.load * problem.price, axis=1)])


def rounded(problem: Problem, slices: int = 8) -> tuple[Fleet | None, float]:
    """The relaxed program, every bucket to the type that has most of it, loads rounded up; and the relaxation's cost, a lower bound.

    Without limits the relaxation is :func:`greedy` before its rounding, as nothing couples the buckets any more.
    """
    solution = build(problem, slices).solve(relaxed=True)
    return _filled(problem, np.eye(len(problem.names))[np.argmax(solution["slices"], axis=1)]), solution.objective


def _filled(problem: Problem, split: Float[np.ndarray, "bucket type"]) -> Fleet | None:
    load = np.multiply(problem.load, split, out=np.zeros(split.shape), where=split > 0).sum(axis=0)
    if not np.isfinite(load).all():
        return None
    gpus = np.ceil(load - 1e-9).astype(int)
    return Fleet(dict(zip(problem.names, gpus.tolist(), strict=True)), float(gpus @ problem.price), split)


def example() -> dict[str, Any]:
    """The authors' example, as arguments of :class:`Problem`."""
    from papers.melange import published

    names = ("A10G", "A100")
    return {
        "rates": dict(zip(names, published.EXAMPLE_RATES, strict=True)),
        "prices": dict(zip(names, published.EXAMPLE_PRICES, strict=True)),
        "shares": published.EXAMPLE_SHARES,
        "total": published.EXAMPLE_RATE,
    }
