"""Measure the claims of MoETuner: ``python -m papers.moetuner.reproduce preset=smoke``."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from common import UserError, zoo
from common.agreement import relative_error
from common.command_line import main
from common.distributed import Ranks, started
from common.ledger import Value
from common.runner import Run
from papers.moetuner import checks, evaluate, ilp, pictures, profile, published, served, speed, traffic, twins
from papers.moetuner.config import Config
from papers.moetuner.evaluate import cluster
from papers.moetuner.placement import Method, Placement, place
from papers.moetuner.profile import Profile, Trace
from papers.moetuner.setting import GPUS, MODEL, Setting, mixtral, setting
from papers.moetuner.traffic import Flow


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.routes:
        check_real(run)
    rng = np.random.default_rng(config.seed)
    place_by, _ = mixtral(config)
    values: dict[str, Value] = {"nvars": {**checks.nvars()}}
    if run.wants("e2e_single", "e2e_multi"):
        values |= end_to_end(config, run)
    if run.wants("search_quality"):
        values["search_quality"] = checks.search_quality(place_by, config, rng)
    with Ranks(GPUS) as ranks:
        if run.wants("grad_duality"):
            values["grad_duality"] = twins.duality(ranks, uneven(), config.twin_bits, rng)
        if run.wants("generator", "ilp1_opt", "ilp2_opt", "balance", "comm", "depend", "same_out", "step_time"):
            here = setting(config, run)
            profiled = keep_profile(here, run)
            values["generator"] = generator(profiled, profile.profile(place_by))
            if run.wants("depend"):
                values["depend"] = depend(here.held, config, rng)
            if run.wants("ilp1_opt"):
                values["ilp1_opt"] = {**checks.first_program(profiled, config, rng)}
            if run.wants("ilp2_opt"):
                values["ilp2_opt"] = checks.second_program(profiled, config)
            values |= served_claims(config, run, here, profiled, ranks)
    if run.wants("solve_time", "by_layers") and run.alone:
        values |= speed.solving(place_by, config, run)
    if run.wants("search_speed") and run.alone:
        values["search_speed"] = speed.searching(config, run, rng)
    timed = ("solve_time", "by_layers", "search_speed", "step_time")
    return values | (dict.fromkeys(timed, run.busy) if run.busy else {})


def check_real(run: Run) -> None:
    """The paper's own scale: routes of the real model, and a GPU for each of the ranks."""
    command = f"torchrun --nproc-per-node {GPUS} -m papers.moetuner.reproduce preset=paper"
    run.require_gpu("the paper's scale")
    place = started()
    if place is None or place.size < GPUS:
        raise UserError(f"the paper's scale needs {GPUS} ranks, each with a GPU; start them: {command}")


def keep_profile(here: Setting, run: Run) -> Profile:
    """The profile to place by; statistics of all routes are kept."""
    for name, trace in (("profiled", here.profiled), ("held out", here.held), ("python", here.python)):
        each = profile.profile(trace)
        run.keep(
            f"routing, {name}",
            {
                "load": each.load,
                "load variation": profile.variation(each.load),
                "top successor": profile.successors(each.moved, 1),
                "mutual information, bits": profile.information(each.moved),
            },
        )
    return profile.profile(here.profiled)


def depend(trace: Trace, config: Config, rng: np.random.Generator) -> dict[str, float]:
    """How much more goes to the two likeliest successors than if layers were independent, and whether chance explains it."""
    if config.shifted:
        far = trace.tokens // trace.layers
        rolled = np.stack([np.roll(each, layer * far, axis=0) for layer, each in enumerate(trace.chosen)])
        trace = Trace(rolled, trace.experts, trace.length)
    counted = profile.profile(trace)
    alone = profile.independent(counted)
    share, by_chance = (profile.successors(each, 2) for each in (counted.moved, alone))
    return {
        "top-2 share": share / by_chance,
        "p": profile.shift_test(trace, config.shifts, rng),
        "share": share,
        "share if independent": by_chance,
        "mutual information, bits": profile.information(counted.moved),
    }


def generator(real: Profile, made: Profile) -> dict[str, float]:
    """The two statistics that the generator was fitted to."""
    return {
        "load variation": profile.variation(made.load) / profile.variation(real.load),
        "top successor": profile.successors(made.moved, 1) / profile.successors(real.moved, 1),
    }


def served_claims(config: Config, run: Run, here: Setting, profiled: Profile, ranks: Ranks) -> dict[str, Value]:
    """What the zoo's mixture shows over real processes."""
    bandwidth, values = cluster(1, GPUS).bandwidth, dict[str, Value]()
    groups = ilp.group(profiled.load, GPUS, equal=config.equal).place
    places = {
        each: place(profiled, bandwidth, each, groups=groups, objective=config.objective, seed=config.seed) for each in Method
    }
    if run.wants("balance", "comm"):
        values |= counted(config, run, here, places, ranks)
    if run.wants("same_out"):
        values["same_out"] = same_out(config, here, places, ranks)
    if run.wants("step_time") and run.alone:
        values["step_time"] = speed.stepping(config, run, here, places[Method.contiguous], places[config.method], ranks)
    return values


def counted(config: Config, run: Run, here: Setting, places: dict[Method, Placement], ranks: Ranks) -> dict[str, Value]:
    """Rows that 4 ranks have sent each other on held-out text."""
    before, after = places[Method.contiguous], places[config.method]
    text = here.held_text[: config.served]
    rows = {name: served.rows(ranks, MODEL, text, each, Flow.follow) for name, each in (("before", before), ("after", after))}
    arrived = {name: each[:, 0].sum(axis=1) for name, each in rows.items()}
    far = {name: traffic.remote(each) for name, each in rows.items()}
    busiest = {name: each.max(axis=(2, 3)) for name, each in far.items()}
    excess = {name: traffic.excess(each) for name, each in arrived.items()}
    run.keep("rows", rows)
    profiled = profile.profile(here.profiled)
    run.figure("routing", lambda: pictures.routing(profiled))
    run.figure("loads", lambda: pictures.loads(profiled, {"contiguous": before, config.method.value: after}, GPUS))
    run.figure("transfers", lambda: pictures.transfers({"contiguous": rows["before"], config.method.value: rows["after"]}))
    values: dict[str, Value] = {
        "balance": {
            "excess removed": 100 * (1 - excess["after"] / excess["before"]),
            "excess, contiguous": 100 * excess["before"],
            "excess, tuned": 100 * excess["after"],
            **{
                f"excess removed, {name}": removed(each, before, after)
                for name, each in (("profiled", here.profiled), ("python", here.python))
            },
        },
        "comm": {
            "remote tokens": checks.relative(far["after"], far["before"]),
            "bottleneck link": checks.relative(busiest["after"], busiest["before"]),
            "remote tokens, dispatch": checks.relative(far["after"][1:, 0], far["before"][1:, 0]),
            **first_alone(here, config, places),
            "bottleneck link, dispatch": checks.relative(busiest["after"][1:, 0], busiest["before"][1:, 0]),
        },
    }
    return values


def first_alone(here: Setting, config: Config, places: dict[Method, Placement]) -> dict[str, float]:
    """What the first program alone does to the traffic, by counting routes."""
    trace = here.held.part(0, config.served)
    rows = [
        traffic.remote(traffic.count(trace, places[each], GPUS, Flow.follow)) for each in (Method.balanced, Method.contiguous)
    ]
    return {
        "remote tokens, first program alone": checks.relative(*rows),
        "bottleneck link, first program alone": checks.relative(*(each.max(axis=(2, 3)) for each in rows)),
    }


def removed(trace: Trace, before: Placement, after: Placement) -> float:
    """Per cent of the excess that is removed, by counting routes."""
    one, other = (traffic.excess(traffic.arrivals(trace, each, GPUS)) for each in (before, after))
    return 100 * (1 - other / one)


def same_out(config: Config, here: Setting, places: dict[Method, Placement], ranks: Ranks) -> dict[str, float]:
    """Largest relative difference of the logits from those of one device: all placements, over ranks and over a mesh."""
    import torch

    text = here.held_text[: config.compared, : config.length // 4]
    with torch.inference_mode():
        want = zoo.load(MODEL).torch(dtype=torch.float64)(torch.from_numpy(text.astype(np.int64))).flatten(0, 1).numpy()
    mapped = np.stack(list(places.values()))
    kept = mapped if config.weights_follow else np.stack([places[Method.contiguous]] * len(mapped))
    in_torch = [
        served.logits(ranks, MODEL, text, one, other, flow) for one, other in zip(mapped, kept, strict=True) for flow in Flow
    ]
    in_jax = twins.logits_jax(MODEL, text, mapped, kept)
    return {name: max(relative_error(each, want) for each in found) for name, found in (("PyTorch", in_torch), ("JAX", in_jax))}


def end_to_end(config: Config, run: Run) -> dict[str, Value]:
    """Speed-up over contiguous placement by the time model, on one node and on two; medians over draws of the routes."""
    methods = list(Method) if run.only is None else [Method.contiguous, config.method]
    tables = [modelled(config, methods, draw) for draw in range(1 if config.routes else config.draws)]
    run.keep("steps", tables)
    run.figure("steps", lambda: pictures.steps(tables[0]))

    def gains(nodes: str, flow: Flow, method: Method = config.method) -> np.ndarray:
        return np.array([each[nodes][f"{method.value}, {flow.value}"]["speed-up"] for each in tables])

    found: dict[str, Value] = {}
    for nodes in ("single", "multi"):
        here = gains(nodes, Flow.follow)
        values = {"speed-up": np.median(here), "least": here.min(), "most": here.max()}
        values["speed-up, fixed"] = np.median(gains(nodes, Flow.fixed))
        if Method.balanced in methods:
            values["first program alone"] = np.median(gains(nodes, Flow.follow, Method.balanced))
        if nodes == "multi":
            values["more than single"] = np.median(here - gains("single", Flow.follow))
        found[f"e2e_{nodes}"] = {name: float(each) for name, each in values.items()}
    return found


def modelled(config: Config, methods: list[Method], draw: int) -> dict[str, dict[str, dict[str, float]]]:
    """Parts of a step in seconds, and speed-up in per cent, by nodes, method and flow."""
    place_by, timed_on = mixtral(config, draw)
    profiled = profile.profile(place_by)
    groups = ilp.group(profiled.load, GPUS, equal=config.equal).place
    table: dict[str, dict[str, dict[str, float]]] = {}
    for nodes, name in ((1, "single"), (2, "multi")):
        machines, rows = cluster(nodes, GPUS), {}
        for method in methods:
            where = place(
                profiled, machines.bandwidth, method, groups=groups, objective=config.objective, seed=config.seed + draw
            )
            for flow in Flow:
                step = evaluate.step(timed_on, where, machines, published.MIXTRAL, config.context, flow)
                parts = {"attention": step.attention, "experts": step.experts, "links": step.links}
                rows[f"{method.value}, {flow.value}"] = {part: float(each.sum()) for part, each in parts.items()}
        for label, row in rows.items():
            base = rows[f"{Method.contiguous.value}, {label.split(', ')[1]}"]
            row["speed-up"] = 100 * (sum(base[part] for part in parts) / sum(row[part] for part in parts) - 1)
        table[name] = rows
    return table


def uneven() -> Int[np.ndarray, " expert"]:
    """A placement with from one to three experts on a rank."""
    return np.array([0, 1, 1, 3, 2, 0, 1, 3])


if __name__ == "__main__":
    raise SystemExit(main("moetuner"))
