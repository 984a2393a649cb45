"""Measure the claims of ProxylessNAS: ``python -m papers.proxyless_nas.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.proxyless_nas import cost, published, space
from papers.proxyless_nas.config import Config, Where

SEARCHES = ("specialise", "no_latency_term", "over_random", "small_space", "latency_model", "step_time")


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.where is Where.imagenet and run.wants(*SEARCHES):
        run.require_gpu("searching on ImageNet")
    values: dict[str, Value] = arithmetic()
    if run.wants("cifar_size", "mobile_size", "gpu_size", "cpu_size", "mobile_14_size"):
        values |= sizes()
    if run.wants("same_gradient", "twin", "untouched", "estimator", "two_path"):
        values |= exactness(config, run)
    if run.wants("memory", "memory_jax", "memory_linear"):
        values |= memory_bytes(config, run)
    if run.wants(*SEARCHES):
        values |= searches(config, run)
    return values | {
        "cifar_error": NotRun("needs GPUs and CIFAR-10; tree.network() is the network"),
        "imagenet": NotRun("needs GPUs and ImageNet; space.searched() are the networks"),
    }


def arithmetic() -> dict[str, Value]:
    """The paper's own figures combined."""
    p = published
    picks = space.parse(p.SEARCHED["mobile"][2])
    table = space.imagenet()
    return {
        "cifar_ratio": p.AMOEBANET_MILLIONS / p.CIFAR_MILLIONS,
        "gpu_speed": {
            "speedup": p.GPU_MS["MobileNetV2"] / p.GPU_MS["searched"],
            "points": p.GPU_TOP1["searched"] - p.GPU_TOP1["MobileNetV2"],
        },
        "search_cost": p.SEARCH_HOURS["MnasNet"] / p.SEARCH_HOURS["searched"],
        "pixel_total": cost.pixel(table).total([place.candidates.index(c) for place, c in zip(table.places, picks, strict=True)]),
    }


def sizes() -> dict[str, Value]:
    """The searched networks, built on the meta device and counted as they run."""
    import torch

    from common.nas.counting import count_torch
    from common.nas.network_torch import Network
    from papers.proxyless_nas import tree

    found: dict[str, Value] = {}
    for name in published.SEARCHED:
        model = Network(space.searched(name), None, device="meta").eval()
        count = count_torch(model, torch.empty(1, 224, 224, 3, device="meta"))
        found[f"{name}_size"] = {"macs": count.macs, "parameters": count.parameters}
    count = count_torch(tree.network(device="meta").eval(), torch.empty(1, 3, 32, 32, device="meta"))
    return found | {"cifar_size": {"parameters": count.parameters, "MACs, millions": count.macs / 1e6}}


def exactness(config: Config, run: Run) -> dict[str, Value]:
    from papers.proxyless_nas import checks

    values: dict[str, Value] = {
        "estimator": checks.estimator(config.seed, config.mechanism),
        "two_path": checks.two_path(config.seed, config.mechanism),
    }
    if run.wants("same_gradient"):
        values["same_gradient"] = checks.same_gradient(config.seed, config.mechanism)
    if run.wants("twin", "untouched"):
        values |= checks.frameworks(config.seed, config.mechanism)
    return values


def memory_bytes(config: Config, run: Run) -> dict[str, Value]:
    from papers.proxyless_nas import memory, pictures

    by_number = {mode: memory.by_number(mode) for mode in ("every", "full", "full_v2")}
    run.keep("memory_by_number", by_number)
    run.figure("memory", lambda: pictures.memory(by_number))
    values: dict[str, Value] = {
        "memory": memory.by_mode(config.seed),
        "memory_linear": {"every path": memory.straightness(by_number["every"]), "full": memory.straightness(by_number["full"])},
    }
    if run.wants("memory_jax"):
        values["memory_jax"] = memory.by_mode_jax()
    return values


def searches(config: Config, run: Run) -> dict[str, Value]:
    from papers.proxyless_nas import trials

    values: dict[str, Value] = {}
    timed = [name for name in ("latency_model", "specialise", "step_time") if run.wants(name)]
    made = trials.prepare(config, run)
    if timed and run.alone:
        values |= timings(config, run, made, timed)
    if run.wants("no_latency_term"):
        values["no_latency_term"] = trials.no_latency_term(made)
    if run.wants("over_random"):
        values["over_random"] = trials.over_random(made)
    if run.wants("small_space"):
        values["small_space"] = trials.small_space(made)
    if run.busy:
        values |= dict.fromkeys(timed, run.busy)
    _draw(run, made)
    return values


def timings(config: Config, run: Run, made: Any, timed: list[str]) -> dict[str, Value]:
    """Claims that stand on times of this machine; the table is measured first, while nothing else runs."""
    from papers.proxyless_nas import measured, pictures, speed, trials

    values: dict[str, Value] = {}
    if {"latency_model", "specialise"} & set(timed):
        with run.timing():
            made.costs["cpu"] = cost.latency(made.task.space, trials.cpu_table(made))
            if "latency_model" in timed:
                values["latency_model"] = trials.latency_model(made)
        if not run.alone:
            # A table that others have disturbed must not serve the next run.
            measured.file_of(config).unlink(missing_ok=True)
    if "latency_model" in timed:
        run.figure("latency", lambda: pictures.scatter(run.details["latency_model"]))
    if "step_time" in timed:
        with run.timing():
            values["step_time"] = speed.steps(made.task, config)
    if "specialise" in timed:
        values["specialise"] = trials.specialise(made)
    return values


def _draw(run: Run, made: Any) -> None:
    """Strips of what was found with the first seed, and how its probabilities went."""
    from papers.proxyless_nas import pictures, search

    if run.only is not None:
        return
    seed, where = made.seeds[0], made.task.space
    names = [name for name in made.costs if name == "pixel" or run.alone]
    found = {name: made.found(seed, name) for name in names}
    run.figure("strips", lambda: pictures.strips({name: search.chosen(where, each.picks) for name, each in found.items()}))
    run.figure("probabilities", lambda: pictures.probabilities(found["pixel"].history, [p.candidates for p in where.places]))
    run.keep("history", found["pixel"].history)
    run.keep("expected", found["pixel"].expected)


if __name__ == "__main__":
    raise SystemExit(main("proxyless_nas"))
