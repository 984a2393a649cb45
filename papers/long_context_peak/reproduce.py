"""Measure the claims of the peak performance analysis: ``python -m papers.long_context_peak.reproduce preset=smoke``."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.long_context_peak import analysis, pictures, published
from papers.long_context_peak.analysis import Convention, Lever
from papers.long_context_peak.config import Config, Fault

GIB = 2**30
FORGETTING = "tokens: sinks and window alone"
"""The plan that keeps nothing of the long context: what all others must beat."""


def measure(config: Config, run: Run) -> dict[str, Value]:
    values = formulas(config)
    if run.wants("gpus", "million"):
        values |= remedies(run)
    if run.wants("kv", "walk"):
        values |= walked(config, run)
    if run.wants("sim", "moved", "switching"):
        from papers.long_context_peak import crowd

        values |= crowd.measure(config, run)
    if run.wants("agreement"):
        values |= agreement(config)
    if run.wants("sweep", "events", "design_points"):
        values |= speeds(config, run)
    if run.wants("here", "efficiency"):
        values |= this_machine(config, run)
    if run.wants("stored", "quality", "better_than_forgetting"):
        values |= compressed(config, run)
    return values


def formulas(config: Config) -> dict[str, Value]:
    """The paper's example: its own inputs in its own formulas."""
    model, machine = analysis.paper_model(), analysis.paper_machine()
    decimal = machine._replace(memory=published.MEMORY_DECIMAL)
    short, long = published.SHORT, published.LONG
    binary = 4 * 1024

    def users(tokens: int, machine: analysis.Machine = machine) -> int:
        return int(analysis.users(model, machine, tokens))

    def prefill(tokens: int, convention: Convention) -> float:
        paid = model if config.attention else model._replace(pair_operations=0.0, layers=0.0)
        return analysis.prefill_seconds(paid, machine, tokens, convention=convention)

    return {
        "users_50k": {"80 GiB": users(long), "80e9 bytes": users(long, decimal)},
        "users_4k": {
            "4000 tokens, 80 GiB": users(short), "4096 tokens, 80 GiB": users(binary), "4000 tokens, 80e9 bytes": users(short, decimal)
        },
        "prefill_4k": {
            "4000 tokens, simplified": prefill(short, Convention.simplified),
            "4096 tokens, simplified": prefill(binary, Convention.simplified),
            "4000 tokens, strict": prefill(short, Convention.strict),
        },
        "prefill_50k": {each.value: prefill(long, each) for each in Convention},
        "decode": {
            "4K, weights alone": published.ANSWER * analysis.token_seconds(model, machine, 0),
            "4K": analysis.decode_seconds(model, machine, short, published.ANSWER),
            "50K": analysis.decode_seconds(model, machine, long, published.ANSWER),
        },
        "switch": {name: analysis.switch_seconds(model, machine, n, n) for name, n in (("4K", short), ("50K", long))},
        "balance": analysis.balance(machine),
        "one_source": one_source(config),
    }  # fmt: skip


def one_source(config: Config) -> dict[str, float]:
    """50K with a cache of the size of 4K, over 4K itself."""
    model, machine = analysis.paper_model(), analysis.paper_machine()
    short, long = published.SHORT, published.LONG
    lever = Lever() if config.fault is Fault.same_cache else Lever(tokens=short / long)
    pairs = {
        "users": [analysis.users(model, machine, n, each) for n, each in ((long, lever), (short, Lever()))],
        "token": [analysis.token_seconds(model, machine, n, each) for n, each in ((long, lever), (short, Lever()))],
        "switch": [analysis.switch_seconds(model, machine, n, n, each) for n, each in ((long, lever), (short, Lever()))],
        "prefill": [analysis.prefill_seconds(model, machine, n, 0.0, each) for n, each in ((long, lever), (short, Lever()))],
    }
    return {name: a / b for name, (a, b) in pairs.items()}


def remedies(run: Run) -> dict[str, Value]:
    """More devices, and the combinations of compressions that make a million tokens as small as four thousand."""
    from papers.long_context_peak import levers

    model, machine = analysis.paper_model(), analysis.paper_machine()
    times = published.MILLION / published.SHORT
    found = levers.combinations(times)
    run.keep("combinations", [{"ideas": list(names), "times": factor} for names, factor in found])
    run.keep("levers", levers.table())
    run.figure("ideas", pictures.ideas)
    return {
        "gpus": {f"{g} devices": int(analysis.users(model, analysis.parallel(machine, g), published.LONG)) for g in (2, 4, 8)},
        "million": {"times": times, "combinations": len(found)},
    }


def walked(config: Config, run: Run) -> dict[str, Value]:
    """Bytes of real cache buffers and operations of real passes over those of the formulas."""
    from common import zoo
    from papers.long_context_peak import walk

    yi, model = published.YI_34B, analysis.model(published.YI_34B)
    trained = zoo.load(config.model)
    run.used(trained.name, trained.source, trained.sha256)
    small, in_torch = analysis.model(trained.architecture, element=4.0), trained.torch()
    contexts = {"4K": published.SHORT, "50K": published.LONG, "100K": published.MIDDLE}
    caches = {name: walk.cache_bytes(walk.OnMeta(yi, context)) for name, context in contexts.items()}
    run.keep("cache_gigabytes", {name: {"GB": size / 1e9, "GiB": size / GIB} for name, size in caches.items()})
    n = config.walk_tokens
    large = walk.OnMeta(yi, published.SHORT + 1)
    counted = {
        "zoo, PyTorch, prompt": (walk.operations(in_torch, n), small, n, 0),
        "zoo, PyTorch, a token": (walk.operations(in_torch, 1, n - 1), small, 1, n - 1),
        "zoo, JAX, prompt": (walk.graph_operations(trained.jax(), n), small, n, 0),
        "Yi-34B, prompt": (walk.operations(large, published.SHORT), model, published.SHORT, 0),
        "Yi-34B, a token": (walk.operations(large, 1, published.SHORT), model, 1, published.SHORT),
    }
    run.keep("operations", {name: each[0] for name, each in counted.items()})
    round_number = analysis.prefill_operations(analysis.paper_model(), published.SHORT, convention=Convention.full)
    run.keep("round number of parameters over counted", round_number / counted["Yi-34B, prompt"][0])
    return {
        "kv": {name: size / GIB for name, size in caches.items()},
        "walk": {
            name: abs(found / analysis.prefill_operations(which, tokens, past, Convention.full) - 1)
            for name, (found, which, tokens, past) in counted.items()
        },
    }


def agreement(config: Config) -> dict[str, Value]:
    """All quantities of random designs: PyTorch and JAX against plain loops, and against each other."""
    from papers.long_context_peak import sweep

    at = sweep.points(config.agree_points, config.seed)
    by_hand, by_torch, by_jax = sweep.by_hand(at), sweep.by_torch(at), sweep.by_jax(at, config.double)
    return {
        "agreement": {
            "PyTorch and loops": sweep.worst(by_torch, by_hand),
            "JAX and loops": sweep.worst(by_jax, by_hand),
            "JAX and PyTorch": sweep.worst(by_jax, by_torch),
        }
    }


def speeds(config: Config, run: Run) -> dict[str, Value]:
    """The compiled sweep, the simulator's events, and one design by each."""
    if not run.alone:
        return dict.fromkeys(("sweep", "events", "design_points"), run.busy)
    from papers.long_context_peak import sweep

    with run.timing():
        whole = sweep.jitted_seconds(config.sweep_points, config.seed)
        call = sweep.jitted_seconds(config.call_points, config.seed)
    values: dict[str, Value] = {"sweep": whole}
    try:
        from papers.long_context_peak.simulator import simulate
    except ModuleNotFoundError as error:
        return values | dict.fromkeys(("events", "design_points"), NotRun(f"{error.name} is not installed", busy=True))
    settings = sweep.settings(sweep.points(10 * config.simulated_points, config.seed), config.simulated_points)
    with run.timing():
        start = time.perf_counter()
        outcomes = [simulate(each) for each in run.track(settings, "simulating designs")]
        one_by_one = (time.perf_counter() - start) / len(settings)
        start = time.perf_counter()
        batched = simulate(dataclasses.replace(settings[0], slots=8, users=config.users))
        events = batched.events / (time.perf_counter() - start)
    run.keep("events of a design", sum(each.events for each in outcomes) / len(outcomes))
    return values | {"events": events, "design_points": one_by_one / (call / config.call_points)}


def this_machine(config: Config, run: Run) -> dict[str, Value]:
    """Predictions of prefill, decoding and switching on this machine after one efficiency for each resource."""
    if not run.alone:
        return dict.fromkeys(("here", "efficiency"), run.busy)
    from papers.long_context_peak import here

    with run.timing():
        best, points = here.measure(config.model, list(config.lengths), config.repeats, config.seed)
    if config.fault is Fault.flat:
        fixed = {point.kind: point.ideal for point in points if point.tokens == config.fitted_at}
        points = [point._replace(ideal=fixed[point.kind]) for point in points]
    efficiency = here.fit(points, config.fitted_at)
    run.keep("peaks", best._asdict())
    run.keep("here", [point._asdict() for point in points])
    run.figure("here", lambda: pictures.here([point._asdict() for point in points], efficiency, config.fitted_at))
    return {"here": here.errors(points, efficiency, config.fitted_at), "efficiency": efficiency}


def compressed(config: Config, run: Run) -> dict[str, Value]:
    """The zoo model's cache on each axis: bytes stored over the lever's, and bits per byte added."""
    import numpy as np
    import torch

    from common import zoo
    from common.data.text import batches, king_james, windows
    from papers.long_context_peak import compression

    text, trained = king_james(), zoo.load(config.model)
    run.used("King James text", text.source, text.sha256)
    run.used(trained.name, trained.source, trained.sha256)
    length = trained.architecture.context - 1
    every = np.concatenate(list(windows(text.held_out, 64, length)))
    held = every[np.linspace(0, len(every) - 1, config.held_rows).astype(int)]
    chosen = batches(text.train, config.chosen_rows, length, config.seed)(0)
    careless = config.fault is Fault.careless
    rows = compression.measure(trained.torch(), torch.from_numpy(chosen), torch.from_numpy(held), config.prompt, careless)
    run.keep("compression", rows)
    run.keep("levers of the compressed", _as_levers(rows))
    run.figure("quality", lambda: pictures.quality(rows))
    plans = {name: row for name, row in rows.items() if name in compression.PLANS}
    return {
        "stored": {name: row["stored"] / row["lever"] for name, row in plans.items()},
        "quality": {name: row["added"] for name, row in plans.items()},
        "better_than_forgetting": {
            name: row["divergence"] / plans[FORGETTING]["divergence"] for name, row in plans.items() if name != FORGETTING
        },
    }


def _as_levers(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What the measured factors would do for the running example at 50K."""
    model, machine, n = analysis.paper_model(), analysis.paper_machine(), published.LONG
    found = {}
    for name, row in rows.items():
        lever = Lever(tokens=row["stored"])
        found[name] = {
            "users": analysis.users(model, machine, n, lever),
            "token": analysis.token_seconds(model, machine, n, lever),
            "switch": analysis.switch_seconds(model, machine, n, n, lever),
        }
    return found


if __name__ == "__main__":
    raise SystemExit(main("long_context_peak"))
