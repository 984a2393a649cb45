"""The claim about robots: searches for controllers, against random search of as many episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.ledger import Value
from common.processes import dealt
from common.runner import Run
from papers.tensorized_emo import metrics, robots, search
from papers.tensorized_emo.config import Config
from papers.tensorized_emo.operators import reference_points
from papers.tensorized_emo.settings import Setting


def measure(config: Config, run: Run) -> Value:
    done = dealt(searched, [(config, name) for name in config.robots], config.workers)
    found = dict(zip(run.track(config.robots, "robots"), done, strict=True))
    for name, runs in found.items():
        run.keep(name, {"runs": runs})
    return {
        "seeds won": min(float(np.mean([one["search"][-1] > one["random"][-1] for one in runs])) for runs in found.values()),
        "policies": min(one["policies"] for runs in found.values() for one in runs),
    }


def searched(config: Config, name: str) -> list[dict[str, Any]]:
    """For each seed hypervolumes over the generations, fronts, and how many policies of the last one behave differently."""
    setting = Setting("nsga3", robots.robot(name, config.robot_steps), config.robot_population, selects=config.selects)
    preferences, runs = reference_points(21, 2), []
    for seed in np.random.SeedSequence((config.seed, 4)).generate_state(config.robot_seeds).tolist():
        states = list(search.generations(setting, seed, config.robot_generations, config.framework.value))
        lot, curve_of_lot = random_search(setting, seed, config.robot_generations)
        x, f = states[-1]
        best = x[metrics.first_front(f)]
        runs.append(
            {
                "search": [metrics.hypervolume(f, robots.CORNER) for _, f in states],
                "random": curve_of_lot,
                "front": f.tolist(),
                "random front": lot.tolist(),
                "expected utility": metrics.expected_utility(f, preferences),
                "expected utility, random": metrics.expected_utility(lot, preferences),
                "policies": robots.distinct(robots.episode(name, best, config.robot_steps)[1]),
            }
        )
    return runs


def random_search(setting: Setting, seed: int, number: int) -> tuple[np.ndarray, list[float]]:
    """As many uniform policies as the search looks at; the front of all, and its hypervolume as they come."""
    everything = Setting("nsga2", setting.problem, (number + 1) * setting.n).start(np.random.default_rng((seed, 1))).f
    best, curve = everything[:0], []
    for some in np.split(everything, number + 1):
        best = np.concatenate([best, some])
        best = best[metrics.first_front(best)]
        curve.append(metrics.hypervolume(best, robots.CORNER))
    return best, curve
