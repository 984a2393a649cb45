"""Claims about the programs: sizes, optima, searches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from papers.moetuner import dp, ilp, search_torch
from papers.moetuner.config import Config
from papers.moetuner.evaluate import cluster
from papers.moetuner.profile import Profile, Trace, profile
from papers.moetuner.setting import GPUS


def groupings(experts: int, count: int, equal: bool = False) -> Iterator[tuple[int, ...]]:
    """Every way to split experts into ``count`` groups that are not empty, each once: as restricted growth strings."""

    def grow(done: tuple[int, ...], used: int) -> Iterator[tuple[int, ...]]:
        if len(done) == experts:
            if used == count and not (equal and any(done.count(group) * count != experts for group in range(count))):
                yield done
            return
        for group in range(min(used + 1, count)):
            yield from grow((*done, group), max(used, group + 1))

    return grow((), 0)


@functools.lru_cache
def every_grouping(experts: int, count: int, equal: bool) -> Int64[np.ndarray, "way expert"]:
    return np.array(list(groupings(experts, count, equal)))


def nvars(layers: int = 32, experts: int = 8) -> dict[str, int]:
    """Variables of both programs for Mixtral's shape, by counting what is built."""
    group = ilp.grouping_model(np.arange(1, experts + 1), GPUS)
    assign = ilp.assignment_model(np.ones((layers - 1, GPUS, GPUS), int), np.ones((GPUS, GPUS)))
    size = {name: each.constant.size for name, each in (group.variables | assign.variables).items()}
    return {"group": layers * size["x"], "assign": size["y"], "products": size["z"]}


def first_program(profiled: Profile, config: Config, rng: np.random.Generator) -> dict[str, int]:
    """How many ways there are, and how often a solver misses the best of them."""
    loads = np.concatenate([profiled.load, rng.integers(0, 1000, (config.instances, profiled.experts))])
    worse = 0
    for equal in (False, True):
        ways = every_grouping(profiled.experts, GPUS, equal)
        member = ways[:, None, :] == np.arange(GPUS)[:, None]
        best = np.abs((member @ loads.T) - loads.sum(axis=1) / GPUS).sum(axis=1).min(axis=0)
        for solver in ("highs", "cp_sat"):
            groups = ilp.group(loads, GPUS, equal=equal, solver=solver).place
            worse += int((ilp.imbalance(loads, groups, GPUS) > best + 1e-6).sum())
    return {
        "groupings": len(every_grouping(profiled.experts, GPUS, False)),
        "pairings": len(every_grouping(profiled.experts, GPUS, True)),
        "instances worse": worse,
    }


def second_program(profiled: Profile, config: Config) -> dict[str, float]:
    """Excess over the exact optimum, the largest of one node and two."""
    groups = ilp.group(profiled.load, GPUS, equal=config.equal).place[: config.solved]
    exchange = ilp.exchanged(_first(profiled, config.solved), groups, GPUS)
    sizes = ilp.sizes(groups, GPUS)
    found: dict[str, list[float]] = {"HiGHS": [], "CP-SAT": [], "gap 0.025": []}
    for nodes in (1, 2):
        bandwidth = cluster(nodes, GPUS).bandwidth
        exact = dp.assign(exchange, bandwidth, sizes, objective=config.objective).objective
        ways: dict[str, dict[str, Any]] = {
            "HiGHS": {},
            "CP-SAT": {"solver": "cp_sat"},
            "gap 0.025": {"gap": 0.025, "solver": "cp_sat"},
        }
        for name, options in ways.items():
            found[name].append(
                ilp.assign(exchange, bandwidth, sizes, objective=config.objective, **options).objective / exact - 1
            )
    return {name: max(each) for name, each in found.items()}


def search_quality(trace: Trace, config: Config, rng: np.random.Generator) -> dict[str, float]:
    """Both searches against the first program with equal groups and dynamic programming, on two nodes."""
    profiled, bandwidth = profile(trace), cluster(2, GPUS).bandwidth
    exact = ilp.group(profiled.load, GPUS, equal=True)
    found = 0.0
    for load in profiled.load:
        groups = search_torch.group(load, search_torch.starts(config.starts, len(load), GPUS, rng), GPUS, config.moves)
        found += float(ilp.imbalance(np.tile(load, (len(groups), 1)), groups, GPUS).min())
    exchange = ilp.exchanged(profiled, exact.place, GPUS)
    best = dp.assign(exchange, bandwidth).objective
    begin = rng.permuted(np.tile(np.arange(GPUS), (config.starts, profiled.layers, 1)), axis=2)
    places = search_torch.assign(exchange, bandwidth, begin, config.moves)
    return {
        "groups": found / exact.objective,
        "assignment": float(min(ilp.cost(exchange, bandwidth, each).sum() for each in places)) / best,
    }


def python_group(
    load: Int[np.ndarray, " expert"], begin: Int[np.ndarray, "start expert"], count: int, moves: int
) -> list[list[int]]:
    """The moves of :func:`papers.moetuner.search_torch.group` in a plain loop."""
    p, mean, found = load.tolist(), sum(load.tolist()) / count, []
    for groups in begin.tolist():
        for _ in range(moves):
            off = [-mean] * count
            for expert, group in enumerate(groups):
                off[group] += p[expert]
            best, swap = -1e-9, None
            for a, b in itertools.combinations(range(len(p)), 2):
                here, there = groups[a], groups[b]
                if here != there:
                    moved = p[a] - p[b]
                    gain = abs(off[here] - moved) + abs(off[there] + moved) - abs(off[here]) - abs(off[there])
                    if gain < best:
                        best, swap = gain, (a, b)
            if swap is None:
                break
            a, b = swap
            groups[a], groups[b] = groups[b], groups[a]
        found.append(groups)
    return found


def _first(profiled: Profile, layers: int) -> Profile:
    return Profile(profiled.load[:layers], profiled.moved[: layers - 1], profiled.active)


def relative(value: Float[np.ndarray, "*a"], base: Float[np.ndarray, "*a"]) -> float:
    return float(value.sum() / base.sum())
