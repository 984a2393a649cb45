"""Timings: the solver in both formulations, the profile against the event simulator, and the profiler on a live server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np

from common.ledger import NotRun, Value
from common.runner import Run
from common.serving import saturated
from papers.melange import published
from papers.melange.checks import batch_of
from papers.melange.config import Config, Framework
from papers.melange.profiler import max_rate, send, toy_server
from papers.melange.service import OBJECTIVES, Service, tabulate
from papers.melange.solver import Problem, allocate


def full_problem(service: Service, rate: float) -> Problem:
    """All 60 buckets in use: the mixed workload with a tenth of its requests spread evenly, at 120 ms."""
    problem = service.problem("mixed", OBJECTIVES[0], rate)
    shares = 0.9 * problem.shares + 0.1 / problem.shares.size
    return replace(problem, shares=shares)


def solving(config: Config, service: Service, run: Run) -> dict[str, Value]:
    """Seconds of the paper's program and of the counted one at f = 8, and how many times as fast the counted one is at f = 16."""
    seconds: dict[tuple[int, bool], list[float]] = {}
    with run.timing():
        for rate in config.solved_rates:
            problem = full_problem(service, rate)
            for slices in (8, 16):
                for aggregated in (False, True):
                    found = allocate(problem, slices, aggregated=aggregated and config.aggregated, time_limit=60.0)
                    seconds.setdefault((slices, aggregated), []).append(found.solution.seconds)
    run.keep("solver_seconds", {f"{'counted' if a else 'slices'}, f={f}": each for (f, a), each in seconds.items()})
    middle = {key: median(each) for key, each in seconds.items()}
    return {
        "solve_time": {"slices": middle[8, False], "counted": middle[8, True]},
        "counted_faster": middle[16, False] / middle[16, True],
    }


def profile_speed(config: Config, service: Service, run: Run) -> Value:
    """How many times as fast as one simulation for each cell the vectorised profile is, and the compiled one's milliseconds."""
    try:
        import simpy  # noqa: F401

        from papers.melange.engine import full_rate
    except ImportError:
        return NotRun("simpy is not installed; pip install simpy", busy=True)
    engines = list(service.engines.values())
    with run.timing():
        taken = []
        for engine in engines:
            for prompt, output in ((25, 25), (250, 250), (2000, 250), (250, 1000)):
                batch = batch_of(engine, prompt, output, OBJECTIVES[0])
                if batch:
                    taken.append(_seconds(lambda e=engine, i=prompt, o=output, n=batch: full_rate(e, i, o, n), 1))
        cells = service.rates.size
        eager = _seconds(lambda: tabulate(engines), 5)
        compiled = _seconds(lambda: tabulate(engines, framework=Framework.jax), 5)
    return {"over simulation": float(np.mean(taken)) * cells / eager, "compiled, milliseconds": 1e3 * compiled}


PACE = {"step": 0.004, "sequence": 0.001, "token": 0.0002}
"""Seconds of the toy server; its model takes less."""


def profiling(config: Config, run: Run) -> Value:
    """The highest rate that the profiler finds on a live server, over that of the closed form at the pace that the server keeps."""
    if not config.served:
        return NotRun("served=0: the profiler is left out", busy=True)
    rng, prompt, output, objective = np.random.default_rng(config.seed), 32, 33, 0.009
    batch = np.arange(1.0, 9.0)
    rates, between = saturated(batch, output, PACE["step"] + PACE["sequence"] * batch, PACE["token"] * prompt)
    with run.timing(), toy_server(slots=len(batch), **PACE) as endpoint:
        top = send(endpoint, prompt, output, np.inf, config.served, rng).rate
        found = max_rate(
            lambda rate: send(endpoint, prompt, output, rate, config.served, rng).between, objective, top / 3, top, steps=5
        )
    return found / float(rates[between <= objective].max())


def profile_endpoint(config: Config, service: Service) -> dict[str, float]:
    """Of a real server: the rates measured over the closed form's, for two sizes."""
    from papers.melange.profiler import Endpoint

    endpoint, rng, ratios = Endpoint(config.endpoint), np.random.default_rng(config.seed), {}
    gpu = list(service.engines).index(config.gpu)
    for size in ((25, 25), (250, 250)):
        top = send(endpoint, *size, np.inf, published.BATCH, rng).rate
        found = max_rate(lambda rate, s=size: send(endpoint, *s, rate, 200, rng).between, OBJECTIVES[0], top / 64, top)
        place = published.INPUT_EDGES.index(size[0]), published.OUTPUT_EDGES.index(size[1])
        ratios[f"{size[0]} in, {size[1]} out"] = found / float(service.rates[gpu, *place, 0])
    return ratios


def _seconds(work: Callable[[], object], times: int) -> float:
    """The median, after one run that does not count."""
    if times > 1:
        work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)
