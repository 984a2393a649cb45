"""Measure the claims of fast model scaling: ``python -m papers.fast_model_scaling.reproduce preset=smoke``."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.fast_model_scaling import checks, counts, pictures, runtime
from papers.fast_model_scaling.complexity import complexity
from papers.fast_model_scaling.config import BASES, Config
from papers.fast_model_scaling.scaling import RULES, scale
from papers.fast_model_scaling.specs import named, tiny

LAPTOP_STEPS = 2000
"""More training than this is no work for a CPU."""


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.steps > LAPTOP_STEPS and run.wants("acc"):
        run.require_gpu(f"{config.steps:,} steps of every training")
    values = counted(config, run)
    values |= {
        "corr": runtime.published_correlations(),
        "corr_counted": unseen(config, run),
        "speed": modelled_speed(config, run),
    }
    if run.wants("twin"):
        values["twin"] = checks.twin(config)
    values |= timings(config, run)
    if run.wants("acc"):
        from papers.fast_model_scaling.training import accuracies

        values["acc"] = accuracies(config, run)
    values["imagenet"] = NotRun("needs GPUs and ImageNet")
    draw(config, run)
    return values


def counted(config: Config, run: Run) -> dict[str, Value]:
    """What is counted; none of it takes long but to build the networks."""
    values: dict[str, Any] = {
        **counts.base_networks(),
        "table_counts": counts.table_mismatches(),
        "y4_x4_fast": counts.y4_fast(),
        "y4_x4_dwr": counts.y4_dwr(),
        "y4_x4_simple": counts.by_rule("RegNetY-4.0GF", ("d", "w", "r")),
        "b0_x4": counts.by_rule("EfficientNet-B0", ("fast", "dwr", "d", "w", "r")),
        **counts.growth(),
        "g_scale": counts.group_scale(),
    }
    if run.wants("theory"):
        values["theory"] = checks.slopes()
    if run.wants("sweep"):
        values["sweep"] = checks.swept(config)
    if run.wants("built"):
        values["built"] = checks.built(config, run)
    if run.wants("saved"):
        from papers.fast_model_scaling.study import saved_claim

        values["saved"] = saved_claim(config, run)
    return values


def unseen(config: Config, run: Run) -> dict[str, float]:
    """Errors of times predicted from multiply-adds over errors of those predicted from activations."""
    logs, times, names = counts.log_table()
    if not config.mechanism:
        logs = logs | {"activations": logs["flops"]}
    errors = runtime.unseen_errors(logs, times, names)
    run.keep("unseen_errors", errors)
    return {how: each["flops"] / each["activations"] for how, each in errors.items()}


def modelled_speed(config: Config, run: Run) -> dict[str, float]:
    """Uniform over fast scaling of EfficientNet-B0 on a V100: time, and time for each multiply-add; single precision beside it."""
    base = named("EfficientNet-B0")
    nets = {rule: scale(base, RULES[rule], 4) for rule in ("dwr", "fast")}
    flops = {rule: complexity(each).flops for rule, each in nets.items()}
    values = {}
    for dtype, what in (("fp16", "time"), ("fp32", "time, single precision")):
        seconds = {rule: runtime.modelled_seconds(each, dtype, memory=config.mechanism) for rule, each in nets.items()}
        values[what] = seconds["dwr"] / seconds["fast"]
    run.keep("memory_share", {rule: runtime.memory_share(each) for rule, each in nets.items()})
    return values | {"time for each multiply-add": values["time"] * flops["fast"] / flops["dwr"]}


def timings(config: Config, run: Run) -> dict[str, Value]:
    """Claims about time; nothing that was not asked for is timed."""
    names = ("corr_cpu", "sweep_speed", "group_conv", "narrow")
    without = run.busy if config.timed else NotRun("timed=False leaves times out", busy=True)
    if without:
        return dict.fromkeys(names, without)
    from papers.fast_model_scaling import speed, study

    values: dict[str, Value] = {}
    if run.wants("corr_cpu"):
        values["corr_cpu"] = study.cpu_claim(config, run)
    if run.wants("sweep_speed"):
        values["sweep_speed"] = speed.sweep_speed(config, run)
    if run.wants("group_conv", "narrow"):
        values |= speed.group_claims(config, run)
    return values if run.busy is None else values | dict.fromkeys(values, run.busy)


def draw(config: Config, run: Run) -> None:
    """The figures of a whole run."""
    if run.only is not None:
        return
    for name in ("EfficientNet-B0", "RegNetY-4.0GF"):
        run.figure(f"growth-{name}", lambda name=name: pictures.growth(counts.curves(name), name))
    base = named("EfficientNet-B0")
    nets = {"base": base} | {f"{rule}, s = 4": scale(base, RULES[rule], 4) for rule in ("dwr", "fast")}
    run.figure("stages", lambda: pictures.stages(nets))
    published = np.array(list(runtime.table().values()))
    panels = {"multiply-adds [10^9]": 0, "activations [10^6]": 2}
    groups = [name.partition("-")[0] for name in runtime.table()]
    shown = {what: (published[:, i].tolist(), published[:, 3].tolist()) for what, i in panels.items()}
    run.figure("published", lambda: pictures.scatter(shown, groups, "ms for each image", "V100"))
    if "seconds" in run.details:
        run.figure("here", lambda: here(run.details))
    if "accuracies" in run.details:
        for name in BASES:
            run.figure(f"accuracy-{name}", lambda name=name: pictures.accuracy(accuracy_points(name, run.details), name))


def here(details: dict[str, Any]) -> Any:
    """Training steps of this machine against what the networks cost."""
    sizes, seconds = details["sizes"], details["seconds"]["training"]
    panels = {what: ([sizes[n][what] for n in seconds], [1e3 * t for t in seconds.values()]) for what in ("flops", "activations")}
    return pictures.scatter(panels, [name.partition(",")[0] for name in seconds], "ms for each step", "here")


def accuracy_points(name: str, details: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """(10^3 activations, per cent) by rule, from s = 1."""
    base = tiny(name)
    found: dict[str, list[tuple[float, float]]] = {}
    for key, accuracy in details["accuracies"].items():
        which, rule, s = key.split(", ")
        if which == name and rule != "base":
            found.setdefault(rule, []).append((complexity(scale(base, RULES[rule], float(s))).activations / 1e3, accuracy))
    start = complexity(base).activations / 1e3, details["accuracies"][f"{name}, base, 1"]
    points = {rule: [start, *sorted(each)] for rule, each in found.items()}
    return {rule: ([x for x, _ in each], [y for _, y in each]) for rule, each in points.items()}


if __name__ == "__main__":
    raise SystemExit(main("fast_model_scaling"))
