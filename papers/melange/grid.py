"""Savings over all rates, workloads and objectives, and what the slice factor changes; medians over draws of the workloads.

A bucket that holds one request in 100,000 can force a GPU into a fleet or a type out of the comparison. Whether it holds one
differs from draw to draw, so each figure is the median of several draws, and all of them are kept.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from statistics import median

from common.ledger import Value
from common.runner import Run
from papers.melange import pictures, workload
from papers.melange.config import Config
from papers.melange.service import OBJECTIVES, Service, choose, redraw, savings
from papers.melange.solver import Problem, example

Savings = dict[str, dict[float, dict[str, float]]]
"""{workload and objective: {rate: {type: per cent cheaper than it alone}}}"""


def savings_claims(config: Config, service: Service, run: Run) -> dict[str, Value]:
    """The smallest and the largest saving of each workload and objective; the largest of all, and that of the abstract's point."""
    names = [name for name in workload.NAMES if run.wants("save", f"range_{name}")]
    first = _savings(config, service, run, names, keep=True)
    others = [_savings(config, redraw(service, config, draw), run, names) for draw in range(1, config.draws)]
    ends = [_ends(saved) for saved in (first, *others)]
    run.keep("savings_by_draw", ends)
    run.figure("savings", lambda: pictures.savings(first))
    for place, objective in enumerate(OBJECTIVES):
        title = f"most tokens a dollar at {1e3 * objective:.0f} ms"
        run.figure(f"best_gpu_{1e3 * objective:.0f}ms", partial(pictures.best_gpu, service, place, title))
    middle = {title: median(each[title] for each in ends) for title in ends[0]}
    values: dict[str, Value] = {}
    for name in names:
        mine = {title: value for title, value in middle.items() if title.startswith(name)}
        values[f"range_{name}"] = {title.partition(", ")[2]: value for title, value in mine.items()}
    if run.wants("save"):
        values["save"] = {
            "grid": median(max(each.values()) for each in ends),
            "short, 120 ms, lowest rate": median(
                max(saved["short, 120 ms"][min(config.rates)].values()) for saved in (first, *others)
            ),
        }
    return values


def slice_factor(config: Config, service: Service, run: Run) -> dict[str, float]:
    """Relative change of cost from the coarsest slice factor, or 8, to 16: the largest of a draw, and the largest of all draws.

    The authors' example counts in every draw: it has four buckets, so that slices matter most.
    """
    largest = []
    for draw in run.track(range(config.draws), "slice factors"):
        drawn = redraw(service, config, draw)
        points = product(workload.NAMES, OBJECTIVES, config.sensitivity_rates)
        problems = [Problem(**example()), *(drawn.problem(*point) for point in points)]
        costs = [[choose(config, problem, f).cost for f in (config.coarsest, 8, 16)] for problem in problems]
        changes = [max(abs(coarse / fine - 1), abs(middle / fine - 1)) for coarse, middle, fine in costs]
        largest.append(max(changes))
    run.keep("slice_factor_by_draw", largest)
    return {"largest": median(largest), "largest of any draw": max(largest), "smallest of any draw": min(largest)}


def _savings(config: Config, service: Service, run: Run, names: list[str], *, keep: bool = False) -> Savings:
    """Of one draw; ``keep``: with fleets, costs by slice factor and a figure, else at the last slice factor alone."""
    saved: Savings = {}
    fleets: dict[str, dict[float, dict[str, int]]] = {}
    costs: dict[str, dict[str, list[float]]] = {}
    for name in names:
        for objective in OBJECTIVES:
            title = f"{name}, {1e3 * objective:.0f} ms"
            saved[title], fleets[title], costs[title] = {}, {}, {}
            for rate in run.track(config.rates, f"fleets for {title}"):
                problem = service.problem(name, objective, rate)
                for slices in config.slices if keep else config.slices[-1:]:
                    fleet = choose(config, problem, slices)
                    costs[title].setdefault(f"f={slices}", []).append(fleet.cost)
                saved[title][rate], fleets[title][rate] = savings(name, problem, fleet), fleet.gpus
    if keep:
        run.keep("savings", saved)
        run.keep("fleets", fleets)
        run.keep("costs", costs)
        run.figure("fleets", lambda: pictures.fleets(fleets))
    return saved


def _ends(saved: Savings) -> dict[str, float]:
    flat = {title: [each for rate in rates.values() for each in rate.values()] for title, rates in saved.items()}
    return {f"{title}, {kind.__name__}": float(kind(each)) for title, each in flat.items() for kind in (min, max)}
