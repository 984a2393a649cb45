"""Searches beside architectures drawn at random, at equal cost, over several seeds; and searches for two devices."""

from __future__ import annotations

import itertools
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
from papers.fbnet.sample import Codes, Sample, log_probability, probabilities, sample, uniform
from papers.fbnet.search import Search
from papers.fbnet.space import CODES, Space, show
from papers.fbnet.train import Trained, train


@dataclass(frozen=True, eq=False)
class Found:
    """What one search left behind, and the nets that were drawn from it."""

    search: Search
    samples: list[Sample]


def search(space: Space, costs: Costs, parts: Parts, config: Config, seed: int, store: Store) -> Found:
    """One search and samples of what it has learned."""
    # The control never moves the logits, so what the weights learn is of no use to it: one epoch, for the history.
    short = config if config.searched else replace(config, epochs=1, warm_epochs=0)
    done = Search(space, costs, parts, short, seed)
    done.run(store)
    return Found(done, sample(done.theta, config.sampled, np.random.default_rng([seed, 1])))


def search_macs(space: Space, config: Config, macs: list[int]) -> int:
    """Multiply-adds of forward passes of a search and of the training of its samples, which have these multiply-adds for an
    image; the backward passes' are in proportion."""
    every = sum(
        layer.count(place.size, place.size).macs
        for place, row in zip(space.places, space.candidates(), strict=True)
        for layer in row
        if layer
    )
    counts = space.net(("s",) * len(space.places)).counts(space.size, space.size)
    whole = every + counts[0].macs + counts[-2].macs + counts[-1].macs
    steps = config.epochs * (config.weight_steps + config.theta_steps)
    return config.batch * (steps * whole + config.child_steps * sum(macs))


def at_random(space: Space, config: Config, seed: int, budget: int) -> list[Codes]:
    """Uniformly random architectures whose training, like that of a search's samples, spends as many multiply-adds."""
    rng, spent = np.random.default_rng([seed, 2]), 0
    drawn: list[Codes] = []
    while spent < budget:
        drawn.append(sample(uniform(len(space.places)), 1, rng)[0].codes)
        spent += config.batch * config.child_steps * macs_of(space, drawn[-1])
    return drawn


def reported_score(net: Trained, config: Config) -> float:
    """The paper's loss on test images."""
    return net.loss * config.alpha * math.log(net.latency) ** config.beta


def claims(config: Config, run: Run, space: Space, parts: Parts, here: Costs, there: Costs) -> dict[str, Any]:
    """All that is claimed of searches; the details go to the run."""
    against, across_devices = run.wants("search", "random_search"), run.wants("device")
    jobs = [(costs, seed) for costs in (here, *([there] if across_devices else [])) for seed in config.seeds]
    stores = [run.checkpoint(f"search-{costs.name.replace(' ', '-')}-{seed}") for costs, seed in jobs]
    searches = [(space, costs, parts, config, seed, store) for (costs, seed), store in zip(jobs, stores, strict=True)]
    done = zip(run.track(jobs, "searches"), dealt(search, searches, config.workers), strict=True)
    found = {(costs.name, seed): each for (costs, seed), each in done}
    ours = {seed: found[here.name, seed] for seed in config.seeds}
    values: dict[str, Any] = {}
    nets: dict[int, list[Trained]] = {}
    if against:
        nets, random = trained(config, run, space, parts, here, ours)
        values |= beside_random(config, run, ours, nets, random)
    if across_devices:
        others = {seed: found[there.name, seed] for seed in config.seeds}
        values["device"] = across(run, here, there, ours, others)
        run.keep("there", [_told(each, [], space, there) for each in others.values()])
    run.keep("here", [_told(each, nets.get(seed, []), space, here) for seed, each in ours.items()])
    return values


def trained(
    config: Config, run: Run, space: Space, parts: Parts, costs: Costs, found: dict[int, Found]
) -> tuple[dict[int, list[Trained]], dict[int, list[Trained]]]:
    """The samples of every search and, at equal cost, random architectures, all trained alike."""
    lots: dict[tuple[int, bool], list[Codes]] = {}
    for seed, each in found.items():
        lots[seed, True] = [one.codes for one in each.samples]
        budget = search_macs(space, config, [macs_of(space, codes) for codes in lots[seed, True]])
        lots[seed, False] = at_random(space, config, seed, budget)
    jobs = [(space, codes, parts, costs, config, seed) for (seed, _), lot in lots.items() for codes in lot]
    # One by one: whole lots would leave a process waiting.
    every = zip(run.track(jobs, "samples and random nets"), dealt(train, jobs, config.workers), strict=True)
    nets = iter([net for _, net in every])
    done = {key: list(itertools.islice(nets, len(lot))) for key, lot in lots.items()}
    ours, random = ({seed: done[seed, mine] for seed in found} for mine in (True, False))
    return ours, random


def beside_random(
    config: Config, run: Run, found: dict[int, Found], ours: dict[int, list[Trained]], theirs: dict[int, list[Trained]]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for seed, nets in ours.items():
        random = theirs[seed]
        # By the score on the images of the architecture.
        mine, best = (min(some, key=lambda net: net.score) for some in (nets, random))
        rows.append(
            {
                "latency": _mean(nets, "latency") / _mean(random, "latency"),
                "expected": expected_over_uniform(found[seed].search),
                "accuracy": _mean(nets, "accuracy") - _mean(random, "accuracy"),
                "score": reported_score(mine, config) / reported_score(best, config),
                "nets at equal cost": len(random),
                "best accuracy": [mine.accuracy, best.accuracy],
                "best latency": [mine.latency, best.latency],
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


def macs_of(space: Space, codes: Codes) -> int:
    """Multiply-adds of one image."""
    return space.net(codes).count(space.size, space.size).macs


def _mean(nets: list[Trained], name: str) -> float:
    return float(np.mean([getattr(net, name) for net in nets]))


def _told(found: Found, nets: list[Trained], space: Space, costs: Costs) -> dict[str, Any]:
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
            for net in nets
        ],
        "most likely": {"codes": show(likely, space), "log P": log_probability(found.search.theta, likely)},
    }  # fmt: skip
