"""The searches that claims are about, each made once for each seed, and their statistics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from common.checkpoint import Checkpoint
from common.ledger import Value
from common.nas import LatencyTable
from common.runner import Run
from common.stats import mean_interval
from papers.proxyless_nas import cost, measured, retrain, search, small
from papers.proxyless_nas.config import PRESETS, Config, Where
from papers.proxyless_nas.cost import Cost
from papers.proxyless_nas.data import Task, digits, photos
from papers.proxyless_nas.imagenet import imagenet
from papers.proxyless_nas.objective import Objective
from papers.proxyless_nas.retrain import Tested
from papers.proxyless_nas.search import Found
from papers.proxyless_nas.supernet_torch import SuperNet


@dataclass
class Trials:
    """Searches of one run; what two claims need is made once."""

    config: Config
    run: Run
    task: Task
    costs: dict[str, Cost]
    _starts: dict[int, SuperNet] = field(default_factory=dict)
    _found: dict[tuple[int, str, bool], Found] = field(default_factory=dict)
    _random: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _tested: dict[tuple[int, tuple[int, ...]], Tested] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return [self.config.seed + 100 * i for i in range(self.config.seeds)]

    def store(self, name: str) -> Checkpoint | None:
        """Where a training of hours keeps its state; those of seconds keep none."""
        return self.run.checkpoint(name) if self.config.where is Where.imagenet else None

    def start(self, seed: int) -> SuperNet:
        if seed not in self._starts:
            self._starts[seed] = search.warmed_up(self.task, self.config, self.costs["macs"], seed, self.store(f"warm-up-{seed}"))
        return self._starts[seed]

    def found(self, seed: int, target: str, with_cost: bool = True) -> Found:
        """The search of a seed for a target, with the cost in its loss or without."""
        key = (seed, target if with_cost else "", with_cost)
        if key not in self._found:
            weight = self.config.latency_weight if with_cost else 0.0
            self._found[key] = search.run(
                self.start(seed),
                self.task,
                self.config,
                self.costs[target],
                seed,
                weight,
                self.store(f"{target}-{with_cost}-{seed}"),
            )
        return self._found[key]

    def random(self, seed: int) -> tuple[int, ...]:
        """What random search finds by the Pixel table at the cost of a search."""
        if seed not in self._random:
            weight = self.config.latency_weight
            self._random[seed] = search.at_random(self.start(seed), self.task, self.config, self.costs["pixel"], seed, weight)
        return self._random[seed]

    def tested(self, seed: int, picks: tuple[int, ...]) -> Tested:
        if (seed, picks) not in self._tested:
            self._tested[seed, picks] = retrain.retrain(
                self.task, self.config, picks, seed, self.store(f"retrained-{seed}-{''.join(map(str, picks))}")
            )
        return self._tested[seed, picks]


def prepare(config: Config, run: Run) -> Trials:
    """Images, space and the costs that need no measurement."""
    task = {Where.digits: lambda _: digits(), Where.photos: photos, Where.imagenet: imagenet}[config.where](config.seed)
    run.used(task.name, task.source, task.sha256)
    return Trials(config, run, task, {"macs": cost.macs(task.space), "pixel": cost.pixel(task.space)})


def no_latency_term(trials: Trials) -> Value:
    """Cost by the Pixel table of the network searched with the latency term over that without."""
    price, ratios = trials.costs["pixel"], []
    for seed in trials.run.track(trials.seeds, "with and without the latency term"):
        pair = [trials.found(seed, "pixel", with_cost).picks for with_cost in (True, False)]
        ratios.append(price.total(pair[0]) / price.total(pair[1]))
    trials.run.keep("no_latency_term", ratios)
    return mean_interval(ratios)


def over_random(trials: Trials) -> Value:
    """Objective of random search less that of the search, both retrained and tested; positive: the search is better."""
    config, price = trials.config, trials.costs["pixel"]
    objective = Objective(price.uniform, config.latency_weight, config.form)
    differences, details = [], []
    for seed in trials.run.track(trials.seeds, "against random search"):
        mine = trials.found(seed, "pixel").picks
        pair = {"searched": mine, "random search": trials.random(seed)}
        tested = {name: trials.tested(seed, picks) for name, picks in pair.items()}
        values = {name: objective(tested[name].loss, price.total(picks)) for name, picks in pair.items()}
        differences.append(values["random search"] - values["searched"])
        details.append(
            {
                name: {**tested[name]._asdict(), "cost": price.total(picks), "picks": words(trials, picks)}
                for name, picks in pair.items()
            }
        )
    trials.run.keep("over_random", details)
    return mean_interval(differences)


def specialise(trials: Trials) -> Value:
    """Searches for three targets, every network priced by all three; means over the seeds."""
    targets = ("cpu", "pixel", "macs")
    prices = {target: [] for target in targets}
    accuracy: dict[str, list[float]] = {target: [] for target in targets}
    kept = []
    for seed in trials.run.track(trials.seeds, "three targets"):
        for target in targets:
            picks = trials.found(seed, target).picks
            prices[target].append([trials.costs[other].total(picks) for other in targets])
            accuracy[target].append(trials.tested(seed, picks).accuracy)
            kept.append({"seed": seed, "target": target, "picks": words(trials, picks), "accuracy": accuracy[target][-1]})
    table = np.array([np.mean(prices[target], 0) for target in targets])
    trials.run.keep(
        "specialise",
        {
            "costs": {t: dict(zip(targets, row, strict=True)) for t, row in zip(targets, table.tolist(), strict=True)},
            "networks": kept,
        },
    )
    own = {t: float(table[i, i] / np.delete(table[:, i], i).min()) for i, t in enumerate(targets)}
    means = [100 * float(np.mean(accuracy[target])) for target in targets]
    return own | {"accuracy spread": max(means) - min(means)}


def small_space(trials: Trials) -> Value:
    """Means over seeds of what :func:`small.nearness` says, on digits and by the Pixel table."""
    if trials.config.where is not Where.digits:
        whole = trials.config if trials.config.where is Where.photos else PRESETS["laptop"]
        trials = prepare(replace(whole, where=Where.digits, mechanism=trials.config.mechanism), trials.run)
    pixel = trials.costs["pixel"]
    rows = [
        small.nearness(
            trials.task,
            trials.config,
            pixel,
            trials.found(seed, "pixel"),
            trials.found(seed, "pixel", False),
            trials.random(seed),
            seed,
        )
        for seed in trials.run.track(trials.seeds, "all networks of a small space")
    ]
    trials.run.keep("small_space", rows)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def latency_model(trials: Trials) -> Value:
    """How well sums over this machine's table predict whole networks on it."""
    found = measured.predictions(trials.task.space, trials.config, cpu_table(trials))
    trials.run.keep("latency_model", found)
    ratio = found["measured"] / found["predicted"]
    return {
        "correlation": measured.correlation(found["predicted"], found["measured"]),
        "measured over predicted": float(np.median(ratio)),
    }


def cpu_table(trials: Trials) -> LatencyTable:
    """This machine's, measured where it is not known yet."""
    space, config = trials.task.space, trials.config
    return measured.cpu_table(space, config, measured.file_of(config), lambda rows: trials.run.track(rows, "table of latencies"))


def words(trials: Trials, picks: tuple[int, ...]) -> str:
    return " ".join(str(candidate) for candidate in search.chosen(trials.task.space, picks))
