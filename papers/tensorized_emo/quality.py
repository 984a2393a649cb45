"""Claims about quality: fronts found by the tensor forms, their sequential originals and two libraries, compared over seeds."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable

import numpy as np

from common.ledger import NotRun, Value
from common.processes import dealt
from common.runner import Run
from papers.tensorized_emo import metrics, peers, search
from papers.tensorized_emo.checks import NAMES
from papers.tensorized_emo.config import Config
from papers.tensorized_emo.problems import dtlz, front
from papers.tensorized_emo.settings import Setting

PEERS = (("nsga3", "pymoo"), ("nsga3", "EvoX"), ("moead", "pymoo"), ("hype", "EvoX"))
"""Algorithms and the libraries they are compared with: pymoo has no HypE; EvoX's MOEA/D is the same sequential one as pymoo's
and left out for its cost."""

METHODS = ("tensor", "loop", "pymoo", "EvoX")


def measure(config: Config, run: Run) -> dict[str, Value]:
    """The claims quality, quality_test and quality_peers, from one set of searches: each by every method that they ask for."""
    missing = [name for name in ("pymoo", "evox") if importlib.util.find_spec(name) is None]
    with_loops = run.wants("quality", "quality_test")
    with_peers = run.wants("quality_peers") and not missing
    cells: dict[tuple[str, int], list[str]] = {}
    for algorithm, number in itertools.product(NAMES, config.quality_problems):
        others = ["loop"] if with_loops else []
        if with_peers and number in config.peer_problems:
            others += [library for each, library in PEERS if each == algorithm]
        if others:
            cells[algorithm, number] = ["tensor", *others]
    found = searches(config, run, cells)
    values: dict[str, Value] = {}
    if with_loops:
        values |= against_loops(config, run, found)
    if run.wants("quality_peers"):
        why = NotRun.without(missing[0]) if missing else None
        values["quality_peers"] = why or against_peers(config, run, found)
    return values


def searches(config: Config, run: Run, cells: dict[tuple[str, int], list[str]]) -> dict[tuple[str, int, str], list[np.ndarray]]:
    """The last population's objectives of every seed, by algorithm, problem and method; the dearest searches first."""
    jobs = []
    for cell, methods in cells.items():
        for method in methods:
            number = config.peer_seeds if method in ("pymoo", "EvoX") else config.quality_seeds
            seeds = np.random.SeedSequence((config.seed, METHODS.index(method))).generate_state(number)
            # A tensor form is compiled once for all its seeds.
            lots = [seeds] if method == "tensor" else seeds[:, None]
            jobs += [(*cell, method, lot.tolist()) for lot in lots]
    jobs.sort(key=lambda job: (METHODS.index(job[2]), job[0] == "moead"), reverse=True)
    results: dict[tuple[str, int, str], list[np.ndarray]] = {}
    done = dealt(final, [(config, *job) for job in jobs], config.workers)
    for job, fronts in zip(run.track(jobs, "searches"), done, strict=True):
        results.setdefault(job[:3], []).extend(fronts)
    return results


def final(config: Config, algorithm: str, number: int, method: str, seeds: list[int]) -> list[np.ndarray]:
    """The objectives of the last population, for each seed."""
    tensor = method == "tensor"
    setting = Setting(
        algorithm, dtlz(number), config.quality_population, config.quality_samples, selects=config.selects or not tensor
    )
    if method in ("pymoo", "EvoX"):
        return [peers.final(method, setting, number, seed, config.quality_generations) for seed in seeds]
    how = config.framework.value if tensor else "sequential"
    return [search.final(setting, seed, config.quality_generations, how) for seed in seeds]


def against_loops(config: Config, run: Run, found: dict[tuple[str, int, str], list[np.ndarray]]) -> dict[str, Value]:
    ratios: dict[str, dict[int, float]] = {NAMES[name]: {} for name in NAMES}
    chances: dict[str, dict[int, float]] = {NAMES[name]: {} for name in NAMES}
    kept = {}
    for algorithm, name in NAMES.items():
        for number in config.quality_problems:
            igd = measures(number)["IGD"]
            a, b = ([igd(f) for f in found[algorithm, number, method]] for method in ("tensor", "loop"))
            ratios[name][number] = float(np.median(a) / np.median(b))
            chances[name][number] = metrics.p_worse(a, b)
            kept[f"{name}, DTLZ{number}"] = {"tensor": sorted(a), "loop": sorted(b)}
    run.keep("IGD", kept)
    run.keep("IGD, ratios of medians", ratios)
    run.keep("IGD, p", chances)
    return {
        "quality": {name: max(each.values()) for name, each in ratios.items()},
        "quality_test": {name: min(1.0, min(each.values()) * len(each)) for name, each in chances.items()},
    }


def against_peers(config: Config, run: Run, found: dict[tuple[str, int, str], list[np.ndarray]]) -> Value:
    """The smallest p over problems and both measures, times the number of tests."""
    result, kept = {}, {}
    for algorithm, library in PEERS:
        chances = {}
        for number in config.peer_problems:
            for what, measure in measures(number).items():
                series = {
                    method: [measure(f) for f in found[algorithm, number, method]]
                    for method in METHODS
                    if (algorithm, number, method) in found
                }
                chances[f"DTLZ{number}, {what}"] = metrics.p_worse(series["tensor"], series[library])
                kept[f"{NAMES[algorithm]}, DTLZ{number}, {what}"] = {
                    **{method: float(np.median(each)) for method, each in series.items()},
                    "p": chances[f"DTLZ{number}, {what}"],
                    # The sequential original against the library tells what the sweep over all at once costs.
                    **({"p of the loop": metrics.p_worse(series["loop"], series[library])} if "loop" in series else {}),
                }
        result[f"{NAMES[algorithm]}, {library}"] = min(1.0, min(chances.values()) * len(chances))
    run.keep("libraries, quality", kept)
    return result


def measures(number: int) -> dict[str, Callable[[np.ndarray], float]]:
    """What is compared, smaller being better; the corner of the hypervolume lies behind the front, which ends at 0.5 or 1."""
    true, corner = front(number), np.full(3, 1.0 if number == 1 else 1.5)
    return {"IGD": lambda f: metrics.igd(f, true), "lost hypervolume": lambda f: corner.prod() - metrics.hypervolume(f, corner)}
