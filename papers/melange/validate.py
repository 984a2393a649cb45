"""Does the fleet keep its promise? A balancer and every engine of a fleet, simulated; and a day with a new fleet each hour.

The balancer knows the prompt of a request, not its output. It takes the type with the odds that the solution gives to the bucket of
the prompt, averaged over the outputs that such prompts have had, and of that type the GPU with the least work before it: the
seconds of a GPU that the solution plans for such a request, worked off as time passes (paper, section on the load balancer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from common.serving import Request, simulate
from papers.melange import published
from papers.melange.profile import Engine
from papers.melange.solver import Fleet, Problem, allocate, single
from papers.melange.workload import buckets


@dataclass(frozen=True)
class Attained:
    """What the requests saw, in the order of arrival.

    Attributes:
        between: seconds between tokens, each request's mean.
        gpu: the GPU that served it, numbered through the fleet's types.
        used: share of the time in which each GPU computed.
    """

    between: Float[np.ndarray, " request"]
    gpu: Int[np.ndarray, " request"]
    used: Float[np.ndarray, " gpu"]

    def share(self, objective: float) -> float:
        """Of the requests that meet the objective."""
        return float((self.between <= objective).mean())


def serve_fleet(
    problem: Problem,
    fleet: Fleet,
    engines: Mapping[str, Engine],
    pairs: Int[np.ndarray, "request 2"],
    arrivals: Float[np.ndarray, " request"],
    rng: np.random.Generator,
    *,
    by_size: bool = True,
) -> Attained:
    """Send the requests through the balancer and the engines of the fleet.

    Args:
        by_size: choose by the solution; False: any GPU alike that can hold the request, which is a control.
    """
    types = [name for name, number in fleet.gpus.items() for _ in range(number)]
    gpu = route(problem, fleet, engines, pairs, arrivals, rng, by_size=by_size)
    between, used = np.zeros(len(pairs)), np.zeros(len(types))
    for number, name in enumerate(types):
        mine = np.flatnonzero(gpu == number)
        if not len(mine):
            continue
        engine = engines[name]
        requests = [Request(float(arrivals[i]), int(pairs[i, 0]), int(pairs[i, 1])) for i in mine]
        served = simulate(
            requests, prefill=engine.prefill, decode=engine.decode, slots=published.BATCH, memory_tokens=engine.admitted
        )
        between[mine] = served.time_per_token
        used[number] = served.busy / (served.finished.max() - arrivals[0])
    return Attained(between, gpu, used)


def route(
    problem: Problem,
    fleet: Fleet,
    engines: Mapping[str, Engine],
    pairs: Int[np.ndarray, "request 2"],
    arrivals: Float[np.ndarray, " request"],
    rng: np.random.Generator,
    *,
    by_size: bool = True,
) -> Int[np.ndarray, " request"]:
    """The GPU of each request."""
    types = [name for name, number in fleet.gpus.items() for _ in range(number)]
    holds = np.array([[pair.sum() <= engines[name].tokens for name in problem.names] for pair in pairs])
    if not holds[:, [problem.names.index(name) for name in types]].any(axis=1).all():
        worst = pairs[pairs.sum(axis=1).argmax()]
        raise ValueError(f"a request of {worst.tolist()} tokens fits into no GPU of the fleet; add a larger type or cut it")
    kind = np.array([problem.names.index(name) for name in types])
    if not by_size:
        return np.array([rng.choice(np.flatnonzero(each[kind])) for each in holds])
    odds, work = _plan(problem, fleet)
    place = buckets(pairs, problem.inputs, problem.outputs)[:, 0]
    backlog, last, chosen = np.zeros(len(types)), 0.0, np.zeros(len(pairs), np.int64)
    for i, (row, now) in enumerate(zip(place, arrivals, strict=True)):
        backlog, last = np.maximum(backlog - (now - last), 0), now
        weight = odds[row] * holds[i]
        if not weight.any():  # no such prompt in the histogram, or none of its types holds this one
            weight = np.bincount(kind, minlength=len(problem.names)) * holds[i]
        name = rng.choice(len(weight), p=weight / weight.sum())
        candidates = np.flatnonzero(kind == name)
        chosen[i] = candidates[backlog[candidates].argmin()]
        backlog[chosen[i]] += work[row, name]
    return chosen


def _plan(problem: Problem, fleet: Fleet) -> tuple[Float[np.ndarray, "input type"], Float[np.ndarray, "input type"]]:
    """For each bucket of prompts: the odds of the types, and the seconds of a GPU of each that a request takes."""
    shape = (*problem.shares.shape, len(problem.names))
    share, load = np.zeros(shape), np.zeros(shape)
    share[problem.used] = problem.shares[problem.used][:, None] * fleet.split
    load[problem.used] = np.multiply(problem.load, fleet.split, out=np.zeros(fleet.split.shape), where=fleet.split > 0)
    share, load = share.sum(axis=1), load.sum(axis=1)
    return share, np.divide(load, share * problem.total, out=np.zeros(share.shape), where=share > 0)


def day_of(
    problem_at: Callable[[float], Problem], rates: Float[np.ndarray, " hour"], slices: int = 4
) -> dict[str, Float[np.ndarray, " hour"]]:
    """Dollars of each hour: a fleet solved anew each hour, the fleet of the busiest hour kept all day, and each type alone, scaled
    anew each hour, where it can serve everything."""
    problems = [problem_at(float(rate)) for rate in rates]
    costs = {"mix, each hour": np.array([allocate(each, slices).cost for each in problems])}
    costs["mix of the busiest hour"] = np.full(len(rates), costs["mix, each hour"].max())
    for name in problems[0].names:
        alone = [single(each, name) for each in problems]
        if all(alone):
            costs[f"{name}, each hour"] = np.array([each.cost for each in alone if each])
    return costs
