"""Random instances, on which the program is held against its baselines and the solvers against each other; and the oracle."""

from __future__ import annotations

from itertools import product

import numpy as np

from common import UserError
from common.ledger import NotRun, Value
from papers.melange import published
from papers.melange.config import Config
from papers.melange.profile import Engine, table
from papers.melange.service import OBJECTIVES, Service, choose
from papers.melange.solver import Problem, allocate, greedy, rounded, single


def random_problem(rng: np.random.Generator, types: int = 4, buckets: int = 6) -> Problem:
    """Up to so many types and buckets; about one cell in six is forbidden, but no bucket on all types."""
    types, buckets = int(rng.integers(1, types + 1)), int(rng.integers(1, buckets + 1))
    names = [f"type {i}" for i in range(types)]
    rates = rng.lognormal(0, 1, (types, buckets)) * (rng.random((types, buckets)) > 1 / 6)
    rates[rng.integers(0, types, buckets), np.arange(buckets)] = rng.lognormal(0, 1, buckets)
    shares = rng.dirichlet(np.ones(buckets))
    prices = dict(zip(names, rng.uniform(0.5, 8, types).tolist(), strict=True))
    return Problem(dict(zip(names, rates, strict=True)), prices, shares, float(rng.lognormal(1, 0.8)))


def never_worse(config: Config) -> dict[str, int]:
    """Of random instances, those whose solved fleet costs more than a baseline's; or less than the relaxation, which cannot be."""
    rng, worse = np.random.default_rng(config.seed), {"single type": 0, "greedy": 0, "rounded": 0, "below the bound": 0}
    for _ in range(config.instances):
        problem = random_problem(rng)
        cost = choose(config, problem, config.slices[-1]).cost
        by_rounding, bound = rounded(problem, config.slices[-1])
        alone = [each.cost for each in (single(problem, name) for name in problem.names) if each]
        worse["single type"] += any(cost > each + 1e-6 for each in alone)
        worse["greedy"] += cost > greedy(problem).cost + 1e-6
        worse["rounded"] += cost > by_rounding.cost + 1e-6
        worse["below the bound"] += cost < bound - 1e-6
    return worse


def solvers(config: Config) -> Value:
    """Largest relative difference of cost between the method and CP-SAT, CBC and the slices one by one."""
    rng = np.random.default_rng(config.seed + 1)
    others = {"CP-SAT": {"solver": "cp_sat"}, "CBC": {"solver": "cbc"}, "slices one by one": {"aggregated": False}}
    worst = dict.fromkeys(others, 0.0)
    for _ in range(config.peer_instances):
        problem = random_problem(rng)
        cost = choose(config, problem, 4).cost
        try:
            for name, options in others.items():
                worst[name] = max(worst[name], abs(allocate(problem, 4, **options).cost / cost - 1))
        except UserError as error:
            return NotRun(str(error), busy=True)
    return worst


def twin(config: Config, service: Service) -> float:
    """Largest difference of the two frameworks' tables, relative to the largest rate of the GPU."""
    import jax

    from papers.melange.profile import side_by_side
    from papers.melange.profile_jax import max_rate

    engines = list(service.engines.values())
    sizes = [np.array(each, float) for each in (published.INPUT_EDGES, published.OUTPUT_EDGES, OBJECTIVES)]
    sizes = [each.reshape(-1, *[1] * (2 - i)) for i, each in enumerate(sizes)]
    chips, constants, load = side_by_side([each.chip for each in engines]), engines[0].constants, engines[0].load
    with jax.enable_x64(config.twin_bits == 64):
        got = np.asarray(max_rate(chips, constants, load, *sizes, most=published.BATCH, stalls=config.stalls))
    want = table([each.chip for each in engines], constants, load, *(each.ravel() for each in sizes), stalls=config.stalls)
    return float((np.abs(got - want) / want.max(axis=(1, 2, 3), keepdims=True)).max())


ORACLE_SIZES = (25, 250, 2000)


def oracle(config: Config, service: Service) -> dict[str, Value]:
    """Largest deviation of the closed form's rate from that of the event simulator, over all GPUs, three sizes each way and both
    objectives: of batches that fit at their full length, and of those that fit only as sequences grow one after another.

    The simulator gets the batch of the closed form, and its own memory in pages, taken as sequences grow.
    """
    try:
        import simpy  # noqa: F401
    except ImportError:
        missing = NotRun("simpy is not installed; pip install simpy", busy=True)
        return {"oracle_roomy": missing, "oracle_tight": missing}
    from papers.melange.engine import full_rate

    worst = {"oracle_roomy": 0.0, "oracle_tight": 0.0}
    for engine, prompt, output, objective in product(service.engines.values(), ORACLE_SIZES, ORACLE_SIZES, OBJECTIVES):
        batch = batch_of(engine, prompt, output, objective)
        if not batch:
            continue
        closed = table([engine.chip], engine.constants, engine.load, [prompt], [output], [objective], stalls=config.stalls).item()
        kind = "oracle_roomy" if batch * (prompt + output) <= engine.tokens else "oracle_tight"
        worst[kind] = max(worst[kind], abs(closed / full_rate(engine, prompt, output, batch)[0] - 1))
    return dict(worst)


def batch_of(engine: Engine, prompt: int, output: int, objective: float) -> int:
    """The largest batch within objective, slots and memory, by trying one after another; 0 if there is none."""
    n = np.arange(1, published.BATCH + 1)
    step = np.array([engine.decode(int(each), each * (prompt + output / 2)) for each in n])
    between = step + n * engine.prefill(prompt) / (output - 1)
    room = n * engine.constants.occupancy * (prompt + output) * engine.load.cache
    return int(((between <= objective) & (room <= engine.chip.room)).sum()) if prompt + output <= engine.tokens else 0
