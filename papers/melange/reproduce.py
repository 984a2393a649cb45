"""Measure the claims of Mélange: ``python -m papers.melange.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.melange import checks, grid, pictures, published, validate, workload
from papers.melange.config import Config
from papers.melange.fit import Fit, fit
from papers.melange.profile import serve
from papers.melange.service import OBJECTIVES, Service, arena_ratios, build, choose
from papers.melange.solver import Problem, allocate, example


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.endpoint:
        run.require_gpu(f"profiling the server at {config.endpoint}")
    service = build(config)
    values: dict[str, Value] = {"arena_bars": arena_ratios(), "example": solve_example(), "price_arithmetic": price_arithmetic()}
    values |= profile_claims(config, run)
    if run.wants("save", "range_short", "range_long", "range_mixed"):
        values |= grid.savings_claims(config, service, run)
    if run.wants("slice_factor"):
        values["slice_factor"] = grid.slice_factor(config, service, run)
    if run.wants("never_worse"):
        values["never_worse"] = checks.never_worse(config)
    if run.wants("solvers"):
        values["solvers"] = checks.solvers(config)
    if run.wants("attainment"):
        values["attainment"] = attainment(config, service, run)
    if run.wants("twin"):
        values["twin"] = checks.twin(config, service)
    if run.wants("oracle_roomy", "oracle_tight"):
        values |= checks.oracle(config, service)
    timed = ("solve_time", "counted_faster", "profile_speed", "profiler")
    values |= dict.fromkeys(timed, run.busy) if run.busy else timings(config, service, run)
    values["endpoint"] = NotRun("needs a GPU and a server of Llama2-7B on it; give endpoint=http://...")
    if config.endpoint:
        from papers.melange.speed import profile_endpoint

        values["endpoint"] = profile_endpoint(config, service)
    day(config, service, run)
    return values


def price_arithmetic() -> float:
    """Per cent that one A10G and one L4 are cheaper than one H100."""
    return 100 * (1 - (published.PRICES["A10G"] + published.PRICES["L4"]) / published.PRICES["H100"])


def solve_example() -> dict[str, float]:
    """Cost of the authors' example by slice factor, and the fleets of the first and the last."""
    fleets = {f: allocate(Problem(**example()), f) for f in (1, 2, 4, 8)}
    costs: dict[str, float] = {f"f={f}": round(fleet.cost, 2) for f, fleet in fleets.items()}
    return costs | {f"f={f}, {gpu}": number for f in (1, 8) for gpu, number in fleets[f].gpus.items()}


def profile_claims(config: Config, run: Run) -> dict[str, Value]:
    """The fitted corners, and the signs of the cells that were not fitted."""
    found = fit(serve(published.LLAMA2_7B), sees_sizes=config.sees_sizes)
    run.keep("fit", _spread(found))
    run.figure("gains", lambda: pictures.gains(found))
    run.figure("spread", lambda: pictures.spread(found))
    at = {(i, o): 100 * float(found.gains[0, published.SIZES.index(i), published.SIZES.index(o)]) for i, o in published.CORNERS}
    good = found.signs[: found.good]
    names = {side: [(i, o) for i, o in at if (o == published.SIZES[-1]) == (side == "large")] for side in ("small", "large")}
    signs = {"best fit": found.signs[0], "least of the best 1 %": good.min(), "most of the best 1 %": good.max()}
    return {f"gain_{side}_outputs": {f"{i} in, {o} out": at[i, o] for i, o in cells} for side, cells in names.items()} | {
        "signs": {name: 100 * float(each) for name, each in signs.items()}
    }


def _spread(found: Fit) -> dict[str, Any]:
    """How far the good fits lie apart."""
    good = slice(found.good)
    return {
        "best": {"A10G peak": found.at(0)[0], **found.at(0)[1]._asdict()},
        "constants of the best 1 %": {name: sorted(set(each[good].tolist())) for name, each in found.constants._asdict().items()},
        "A10G peaks of the best 1 %": sorted(set(found.peaks[good].tolist())),
        "error": [float(found.error[0]), float(found.error[good].max())],
        "signs": [float(found.signs[0]), float(found.signs[good].min()), float(found.signs[good].max())],
        "rank correlation": [float(found.ranks[0]), float(found.ranks.min()), float(found.ranks.max())],
    }


def attainment(config: Config, service: Service, run: Run) -> dict[str, float]:
    """Per cent of the requests that meet the objective in simulated fleets: of all, and by workload and objective."""
    rng, shares = np.random.default_rng(config.seed + 2), {}
    for name in run.track(config.validated, "requests through the fleets"):
        for objective in OBJECTIVES:
            problem = service.problem(name, objective, config.validated_rate)
            fleet = choose(config, problem, config.slices[-1])
            pairs = workload.draw(name, config.requests, rng)
            times = workload.arrivals(config.validated_rate, config.requests, rng)
            seen = validate.serve_fleet(problem, fleet, service.engines, pairs, times, rng, by_size=config.sees_sizes)
            shares[f"{name}, {1e3 * objective:.0f} ms"] = 100 * seen.share(objective)
    return {"all": float(np.mean(list(shares.values()))), **shares}


def timings(config: Config, service: Service, run: Run) -> dict[str, Value]:
    """Claims about time; nothing that was not asked for is timed."""
    from papers.melange import speed

    values: dict[str, Value] = {}
    if run.wants("solve_time", "counted_faster"):
        values |= speed.solving(config, service, run)
    if run.wants("profile_speed"):
        values["profile_speed"] = speed.profile_speed(config, service, run)
    if run.wants("profiler"):
        values["profiler"] = speed.profiling(config, run)
    return values if run.alone else values | dict.fromkeys(values, run.busy)


def day(config: Config, service: Service, run: Run) -> None:
    """A demonstration, no claim: a fleet of short requests, solved anew each hour."""
    if run.only is not None:
        return
    rates = workload.day(config.day_peak, np.random.default_rng(config.seed + 3))
    costs = validate.day_of(lambda rate: service.problem("short", OBJECTIVES[0], rate), rates)
    run.keep("day", {"rates": rates, "dollars": {name: float(each.sum()) for name, each in costs.items()}})
    run.figure("day", lambda: pictures.day(costs, rates.tolist()))


if __name__ == "__main__":
    raise SystemExit(main("melange"))
