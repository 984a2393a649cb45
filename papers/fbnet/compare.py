"""Searches beside architectures drawn at random, at equal cost, over several seeds; and searches for two devices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common.processes import dealt
from common.runner import Run
from common.stats import mean_interval
from common.training import Store
from papers.fbnet.config import Config
from papers.fbnet.data import Parts
from papers.fbnet.latency import Costs
from papers.fbnet.sample import Sample, log_probability, probabilities, sample, uniform
from papers.fbnet.search import Search
from papers.fbnet.space import CODES, Space, show
from papers.fbnet.train import Trained, train


@dataclass(frozen=True, eq=False)
class Found:
    """What one search left behind, and the nets that were drawn from it and trained."""

    search: Search
    samples: list[Sample]
    nets: list[Trained]

    @property
    def best(self) -> Trained:
        """By the score on the images of the architecture."""
        return min(self.nets, key=lambda net: net.score)


def search(space: Space, costs: Costs, parts: Parts, config: Config, seed: int, store: Store, trains: bool = True) -> Found:
    """One search, its samples drawn and, where it is asked for, trained."""
    # The control never moves the logits, so what the weights learn is of no use to it: one epoch, for the history.
    short = config if config.searched else replace(config, epochs=1, warm_epochs=0)
    done = Search(space, costs, parts, short, seed)
    done.run(store)
    samples = sample(done.theta, config.sampled, np.random.default_rng([seed, 1]))
    return Found(done, samples, [train(space, each.codes, parts, costs, config, seed) for each in samples if trains])


def search_macs(space: Space, config: Config, nets: list[Trained]) -> int:
    """Multiply-adds of forward passes of a search and of the training of its samples; the backward passes' are in proportion."""
    every = sum(
        layer.count(place.size, place.size).macs
        for place, row in zip(space.places, space.candidates(), strict=True)
        for layer in row
        if layer
    )
    counts = space.net(("s",) * len(space.places)).counts(space.size, space.size)
    whole = every + counts[0].macs + counts[-2].macs + counts[-1].macs
    steps = config.epochs * (config.weight_steps + config.theta_steps)
    return config.batch * (steps * whole + config.child_steps * sum(net.macs for net in nets))


def at_random(space: Space, costs: Costs, parts: Parts, config: Config, seed: int, budget: int) -> list[Trained]:
    """Uniformly random architectures, trained like the samples of a search until as many multiply-adds are spent."""
    rng, spent = np.random.default_rng([seed, 2]), 0
    nets: list[Trained] = []
    while spent < budget:
        codes = sample(uniform(len(space.places)), 1, rng)[0].codes
        nets.append(train(space, codes, parts, costs, config, seed))
        spent += config.batch * config.child_steps * nets[-1].macs
    return nets


def reported_score(net: Trained, config: Config) -> float:
    """The paper's loss on test images."""
    return net.loss * config.alpha * math.log(net.latency) ** config.beta


def claims(config: Config, run: Run, space: Space, parts: Parts, here: Costs, there: Costs) -> dict[str, Any]:
    """All that is claimed of searches; the details go to the run."""
    against, across_devices = run.wants("search", "random_search"), run.wants("device")
    jobs = [(here, seed, against) for seed in config.seeds]
    jobs += [(there, seed, False) for seed in config.seeds if across_devices]
    store = {(costs.name, seed): run.checkpoint(f"search-{costs.name.replace(' ', '-')}-{seed}") for costs, seed, _ in jobs}
    done = dealt(
        search,
        [(space, costs, parts, config, seed, store[costs.name, seed], trains) for costs, seed, trains in jobs],
        config.workers,
    )
    found: dict[str, dict[int, Found]] = {here.name: {}, there.name: {}}
    for (costs, seed, _), each in zip(run.track(jobs, "searches"), done, strict=True):
        found[costs.name][seed] = each
    ours, others = found[here.name], found[there.name]
    values: dict[str, Any] = {}
    if against:
        budgets = [search_macs(space, config, ours[seed].nets) for seed in config.seeds]
        nets = dealt(
            at_random,
            [(space, here, parts, config, seed, budget) for seed, budget in zip(config.seeds, budgets, strict=True)],
            config.workers,
        )
        theirs = dict(zip(run.track(config.seeds, "random nets at equal cost"), nets, strict=True))
        values |= beside_random(config, run, space, ours, theirs)
    if across_devices:
        values["device"] = across(run, here, there, ours, others)
        run.keep("there", [_told(each, space, there) for each in others.values()])
    run.keep("here", [_told(each, space, here) for each in ours.values()])
    return values


def beside_random(
    config: Config, run: Run, space: Space, ours: dict[int, Found], theirs: dict[int, list[Trained]]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for seed, found in ours.items():
        nets, random = found.nets, theirs[seed]
        best = min(random, key=lambda net: net.score)
        rows.append(
            {
                "latency": _mean(nets, "latency") / _mean(random, "latency"),
                "expected": expected_over_uniform(found.search),
                "accuracy": _mean(nets, "accuracy") - _mean(random, "accuracy"),
                "score": reported_score(found.best, config) / reported_score(best, config),
                "nets at equal cost": len(random),
                "best accuracy": [found.best.accuracy, best.accuracy],
                "best latency": [found.best.latency, best.latency],
            }
        )
    run.keep("beside_random", rows)
    run.keep("random_nets", [[[net.latency, net.accuracy] for net in nets] for nets in theirs.values()])
    run.keep(
        "intervals", {name: mean_interval([row[name] for row in rows]) for name in ("latency", "expected", "accuracy", "score")}
    )

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    return {
        "search": {"latency": mean("latency"), "expected latency": mean("expected"), "accuracy": 100 * mean("accuracy")},
        "random_search": mean("score"),
    }


def expected_over_uniform(search: Search) -> float:
    """Mean latency of nets drawn from the logits over that of nets drawn uniformly; exact, without drawing."""
    even = search.costs.expected(probabilities(uniform(len(search.space.places))))
    return search.costs.expected(probabilities(search.theta)) / even


def across(run: Run, here: Costs, there: Costs, ours: dict[int, Found], others: dict[int, Found]) -> dict[str, float]:
    """Latency on each device of the nets found for the other one over that of its own, means over samples and seeds."""

    def latency(costs: Costs, found: dict[int, Found]) -> float:
        return float(np.mean([costs.of(net.codes) for each in found.values() for net in each.samples]))

    whole = {
        costs.name: {"nets for this CPU": latency(costs, ours), "nets for the other": latency(costs, others)}
        for costs in (here, there)
    }
    run.keep("across", whole)
    return {
        "there, of this CPU's nets": latency(there, ours) / latency(there, others),
        "here, of the other's nets": latency(here, others) / latency(here, ours),
    }


def _mean(nets: list[Trained], name: str) -> float:
    return float(np.mean([getattr(net, name) for net in nets]))


def _told(found: Found, space: Space, costs: Costs) -> dict[str, Any]:
    likely = tuple(CODES[i] for i in found.search.theta.argmax(-1))
    return {
        "history": found.search.history,
        "thetas": [np.round(theta, 4).tolist() for theta in found.search.thetas],
        "uniform": costs.expected(np.full(costs.blocks.shape, 1 / len(CODES))),
        "samples": [
            {"codes": show(each.codes, space), "log P": each.log_probability, "latency": costs.of(each.codes)}
            for each in found.samples
        ],
        "nets": [
            {**net._asdict(), "codes": show(net.codes, space), "log P": log_probability(found.search.theta, net.codes)}
            for net in found.nets
        ],
        "most likely": {"codes": show(likely, space), "log P": log_probability(found.search.theta, likely)},
    }  # fmt: skip
