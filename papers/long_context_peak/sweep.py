"""Many design points at once: contexts, models, machines and levers as arrays, in either framework, and one by one in loops."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np

from papers.long_context_peak import analysis, levers, published
from papers.long_context_peak.analysis import Lever, Machine, Model, Session
from papers.long_context_peak.setting import Setting

ROUNDS = 5
QUESTION = 50


class Points(NamedTuple):
    """One design for each entry of the arrays."""

    model: Model
    machine: Machine
    lever: Lever
    session: Session
    count: Any


def points(count: int, seed: int) -> Points:
    """Random designs around the running example, all of which hold the weights; float64 NumPy arrays."""
    rng = np.random.default_rng(seed)
    known = list(levers.settings().values())
    models = np.array([[float(each) for each in model] for model, _, _ in known]).T
    machines = np.array([[float(each) for each in analysis.parallel(machine, 2)] for _, machine, _ in known]).T
    row, more = rng.integers(0, len(known), count), rng.integers(1, 5, count)
    document = np.exp(rng.uniform(math.log(1e3), math.log(2e5), count)).round()
    think = rng.uniform(0, 60, count)
    return Points(
        Model(*models[:, row]),
        analysis.parallel(Machine(*machines[:, row]), more.astype(float)),
        Lever(*rng.choice([1.0, 0.5, 0.25], (4, count))),
        Session(document, np.full(count, float(QUESTION)), np.full(count, float(published.ANSWER)), think),
        rng.integers(1, 100, count).astype(float),
    )


def quantities(at: Points) -> tuple[Any, ...]:
    """Users, prefill, answer, switch [s] and sessions per hour of every design."""
    n = at.session.document
    return (
        analysis.users(at.model, at.machine, n, at.lever),
        analysis.prefill_seconds(at.model, at.machine, n, 0.0, at.lever),
        analysis.decode_seconds(at.model, at.machine, n, at.session.answer, at.lever),
        analysis.switch_seconds(at.model, at.machine, n, n, at.lever),
        analysis.sessions_per_hour(at.model, at.machine, at.session, ROUNDS, at.count, at.lever),
    )


def by_torch(at: Points) -> list[np.ndarray]:
    import torch

    return [each.numpy() for each in quantities(_map(torch.from_numpy, at))]


def by_jax(at: Points, double: bool = True) -> list[np.ndarray]:
    """Jitted and mapped point by point; ``double=False`` leaves JAX at its 32 bits."""
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(double):
        return [np.asarray(each) for each in jax.jit(jax.vmap(quantities))(_map(jnp.asarray, at))]


def by_hand(at: Points) -> list[np.ndarray]:
    """The oracle: plain loops over tokens and rounds, point by point, sharing no formula with :mod:`analysis`."""
    found = [
        _one(*(each.__class__(*(float(x[i]) for x in each)) for each in at[:4]), float(at.count[i])) for i in range(len(at.count))
    ]
    return [np.array(each) for each in zip(*found, strict=True)]


def worst(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest relative difference; where one of two is 0 both must be."""
    return max(float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-300) * (a != b))) for a, b in zip(got, want, strict=True))


def jitted_seconds(count: int, seed: int, repeats: int = 3) -> float:
    """Median seconds of all quantities of ``count`` points by one compiled call in float64, compilation and copies left out."""
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        at, compiled = _map(jnp.asarray, points(count, seed)), jax.jit(quantities)
        jax.block_until_ready(compiled(at))
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(at))
            taken.append(time.perf_counter() - start)
    return sorted(taken)[repeats // 2]


def settings(at: Points, limit: int) -> list[Setting]:
    """The first ``limit`` designs that hold at least one user, as what the simulator takes."""
    found = []
    for i in range(len(at.count)):
        model, machine, lever, session = (each.__class__(*(float(x[i]) for x in each)) for each in at[:4])
        try:
            found.append(
                Setting(model=model, machine=machine, lever=lever, session=session, rounds=ROUNDS, users=int(at.count[i]))
            )
        except ValueError:
            continue
        if len(found) == limit:
            break
    return found


def _map(function: Any, at: Points) -> Points:
    return Points(*(each.__class__(*map(function, each)) if isinstance(each, tuple) else function(each) for each in at))


def _one(model: Model, machine: Machine, lever: Lever, session: Session, count: float) -> tuple[float, ...]:
    token_bytes = model.cache_numbers * model.element
    for factor in lever:
        token_bytes *= factor
    weights = model.parameters * model.element
    read_once = (model.parameters - model.expert_parameters + model.expert_parameters * model.active_share) * model.element
    n = session.document

    def fitting(tokens: float) -> float:
        free, held = machine.memory - weights, 0
        if free < 0:
            return float(-math.ceil(-free / (token_bytes * tokens)))
        while (held + 1) * token_bytes * tokens <= free:
            held += 1
        return float(held)

    def prefill(tokens: float, past: float) -> float:
        pairs = sum(past + 1 + i for i in (0, tokens - 1)) * tokens / 2  # first and last query, and all between them
        arithmetic = (tokens * 2 * model.multiplied + pairs * model.pair_operations) / machine.compute
        return max(arithmetic, (_read(model, tokens) + token_bytes * (past + tokens)) / machine.bandwidth)

    def answer(context: float) -> float:
        arithmetic = traffic = 0.0
        for i in range(1, int(session.answer) + 1):
            arithmetic += (2 * model.multiplied + model.pair_operations * (context + i)) / machine.compute
            traffic += (read_once + token_bytes * (context + i)) / machine.bandwidth
        return max(arithmetic, traffic)

    busy = switches = 0.0
    context = 0.0
    for number in range(ROUNDS):
        if number:
            switches += 2 * token_bytes * context / machine.link
        new = session.question + (0 if number else n)
        busy += prefill(new, context) + answer(context + new)
        context += new + session.answer
    room = fitting(context)
    if room < count:
        busy += switches
    rate = 0.0 if room < 1 else 3600 * min(1 / busy, count / (busy + (ROUNDS - 1) * session.think))
    return fitting(n), prefill(n, 0.0), answer(n), 2 * n * token_bytes / machine.link, rate


def _read(model: Model, tokens: float) -> float:
    missed = (1 - model.active_share) ** tokens
    return ((model.parameters - model.expert_parameters) + model.expert_parameters * (1 - missed)) * model.element
