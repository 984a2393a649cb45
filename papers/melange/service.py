"""What a provider of Llama2-7B knows: its GPUs by profile, its workloads by histogram; and the fleets that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from papers.melange import published, workload
from papers.melange.config import Config, Framework, Method
from papers.melange.fit import fit
from papers.melange.profile import Constants, Engine, blind, chip, fits, serve, table
from papers.melange.solver import Fleet, Problem, allocate, greedy, rounded, single

OBJECTIVES = (0.12, 0.04)
"""Seconds between tokens, the paper's two."""

ALONE = {"short": tuple(published.PRICES), "long": ("A100", "H100"), "mixed": ("A100", "H100")}
"""Types whose fleets of their own the paper compares with: GPUs of 24 GB cannot hold the longest requests of the other two."""


@dataclass(frozen=True)
class Service:
    """Attributes:
    engines: one GPU of each type.
    rates: requests a second that it sustains, (gpu, input, output, objective).
    histograms: by workload.
    """

    constants: Constants
    engines: dict[str, Engine]
    rates: Float[np.ndarray, "gpu input output objective"]
    histograms: dict[str, Float[np.ndarray, "input output"]]

    def problem(self, name: str, objective: float, rate: float) -> Problem:
        place, first = OBJECTIVES.index(objective), next(iter(self.engines.values()))
        held = fits([each.chip for each in self.engines.values()], first.load, published.INPUT_EDGES, published.OUTPUT_EDGES)
        over = (self.histograms[name] > 0) & ~held.any(axis=0)
        if over.any():
            i, o = np.argwhere(over)[0]
            raise ValueError(
                f"requests of up to {published.INPUT_EDGES[i]} tokens in and {published.OUTPUT_EDGES[o]} out fit into no GPU's memory, "
                f"which holds {max(each.tokens for each in self.engines.values())} tokens at most; add a larger type or cut them"
            )
        rates = {gpu: self.rates[i, :, :, place] for i, gpu in enumerate(self.engines)}
        edges = (published.INPUT_EDGES, published.OUTPUT_EDGES)
        return Problem(rates, published.PRICES, self.histograms[name], rate, objective, *edges)


def build(config: Config) -> Service:
    """Fit the profile, tabulate it, draw the workloads."""
    load = serve(published.LLAMA2_7B)
    peak, constants = fit(load).at(0)
    engines = {name: Engine(chip(name, load, peak), constants, load) for name in published.PRICES}
    rates = tabulate(list(engines.values()), framework=config.framework, stalls=config.stalls)
    return redraw(Service(constants, engines, rates if config.sees_sizes else blind(rates), {}), config, 0)


def redraw(service: Service, config: Config, draw: int) -> Service:
    """The same GPUs with workloads drawn anew."""
    rng = np.random.default_rng([config.seed, draw])
    histograms = {name: workload.histogram(workload.draw(name, config.pairs, rng)) for name in workload.NAMES}
    return replace(service, histograms=histograms)


def tabulate(
    engines: list[Engine], *, framework: Framework = Framework.torch, stalls: bool = True
) -> Float[np.ndarray, "gpu input output objective"]:
    """The rates of all buckets and both objectives."""
    return table(
        [each.chip for each in engines], engines[0].constants, engines[0].load, published.INPUT_EDGES, published.OUTPUT_EDGES,
        OBJECTIVES, framework=framework.value, stalls=stalls,
    )  # fmt: skip


def choose(config: Config, problem: Problem, slices: int) -> Fleet:
    """The fleet by the method of the configuration."""
    if not config.mixed:
        fleet = single(problem, problem.names[-1])
    elif config.method is Method.ilp:
        # The time limit is for odd cases: none of the grid's comes near it.
        return allocate(problem, slices, aggregated=config.aggregated, time_limit=60.0)
    else:
        fleet = greedy(problem) if config.method is Method.greedy else rounded(problem, slices)[0]
    if fleet is None:
        raise ValueError("the method of the control finds no fleet for this problem; take method=ilp mixed=true")
    return fleet


def savings(name: str, problem: Problem, fleet: Fleet) -> dict[str, float]:
    """Per cent that the fleet is cheaper than each type alone, where that type can serve everything."""
    alone = {gpu: single(problem, gpu) for gpu in ALONE[name]}
    return {gpu: 100 * (1 - fleet.cost / each.cost) for gpu, each in alone.items() if each}


def arena_ratios(fleets: Mapping[int, tuple[dict[str, int], dict[str, int]]] = published.ARENA_FLEETS) -> dict[str, float]:
    """{"rate 1, H100": cost over the mix}: of each type alone, by the paper's prices."""
    ratios = {}
    for rate, (mix, alone) in fleets.items():
        cost = sum(published.PRICES[gpu] * number for gpu, number in mix.items())
        ratios |= {f"rate {rate}, {gpu}": published.PRICES[gpu] * number / cost for gpu, number in alone.items()}
    return ratios
