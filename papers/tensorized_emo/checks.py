"""Claims about equality: reference points, weights, selections, populations, estimates, and what is counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.ledger import Scalar
from common.runner import Run
from papers.tensorized_emo import niche_table, sequential, tensor_torch
from papers.tensorized_emo.config import Config
from papers.tensorized_emo.operators import reference_points
from papers.tensorized_emo.problems import dtlz, on_grid
from papers.tensorized_emo.settings import ALGORITHMS, Setting, State

NAMES = {each: ALGORITHMS[each] for each in ("nsga3", "moead", "hype")}
"""The paper's three."""

QUICK = {"xla_backend_optimization_level": 0}
"""Programs that are compared or weighed but not timed: nearly half the time of compilation, the same buffers."""


def ref_pts() -> dict[str, Scalar]:
    return {str(n): len(reference_points(n, 3)) for n in (100, 10_000, 32_768)}


def alpha() -> float:
    """Of n points k go, each set of k alike. A region that j points share is lost if all j go, and each gets 1/j of it:
    the chance that the j - 1 others go, given that the first does."""
    worst = 0.0
    for n in range(1, 7):
        for k in range(1, n + 1):
            found = tensor_torch.hype_weights(k, n)
            others = list(itertools.combinations(range(1, n), k - 1))
            for j in range(1, n + 1):
                gone = sum(set(range(1, j)) <= set(each) for each in others) / len(others)
                worst = max(worst, abs(found[j] - gone / j))
    return worst


def merged_set(rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
    """A merged population, how many survive, and reference points: of 2 to 5 objectives, on one front or many, with ties."""
    m, n = int(rng.integers(2, 6)), int(rng.integers(16, 90))
    f = rng.random((2 * n, m))
    kind = rng.integers(3)
    if kind == 1:  # nearly one front: the last front is most of it
        f /= np.linalg.norm(f, axis=1, keepdims=True) * rng.uniform(0.95, 1.05, (2 * n, 1))
    if kind == 2:  # few values: equal points, degenerate extremes
        f = np.round(f * 4) / 4
    f *= 10 ** rng.uniform(-1, 2, m)
    references = reference_points(max(n, m), m)
    return f, n, references[rng.permutation(len(references))]


def same_set(config: Config) -> dict[str, Scalar]:
    rng = np.random.default_rng(config.seed)
    differ: dict[str, Scalar] = {"sequential": 0, "table": 0}
    for _ in range(config.merged_sets):
        f, n, references = merged_set(rng)
        tensors = torch.from_numpy(f), n, torch.from_numpy(references)
        found = tensor_torch.survivors(*tensors).numpy()
        differ["sequential"] += not np.array_equal(found, sequential.niching(f, n, references))
        differ["table"] += not np.array_equal(found, niche_table.survivors(*tensors).numpy())
    return differ


def same_populations(config: Config) -> dict[str, float]:
    """The largest difference of any objective over the generations, individual by individual."""
    pairs = list(itertools.product(NAMES, config.twin_problems))
    with ThreadPoolExecutor(2) as pool:  # most of the time is spent in compilers, which run side by side
        found = list(pool.map(lambda pair: _difference(config, *pair), pairs))
    return {
        name: max(each for (algorithm, _), each in zip(pairs, found, strict=True) if algorithm == key)
        for key, name in NAMES.items()
    }


def _difference(config: Config, algorithm: str, number: int) -> float:
    import jax
    import jax.numpy as jnp

    from papers.tensorized_emo import tensor_jax

    setting = Setting(algorithm, on_grid(dtlz(number)), config.twin_population, samples=400)
    rng = np.random.default_rng(config.seed)
    first, worst = setting.start(rng), 0.0
    with jax.enable_x64(config.twin_bits == 64):
        loop, one = sequential.step(setting), tensor_torch.step(setting)
        other = jax.jit(tensor_jax.step(setting), compiler_options=QUICK)
        a, b, c = first, State(*map(torch.from_numpy, first)), State(*map(jnp.asarray, first))
        for _ in range(config.twin_generations):
            noise = setting.draw(rng)
            b = one(b, {name: torch.from_numpy(each) for name, each in noise.items()})
            c = other(c, {name: jnp.asarray(each) for name, each in noise.items()})
            worst = max(worst, float(np.abs(b.f.numpy() - np.asarray(c.f)).max()))
            if algorithm != "moead":  # one sweep over all children at once is not one after the other
                a = loop(a, noise)
                worst = max(worst, float(np.abs(a.f - b.f.numpy()).max()))
    return worst


def hype_mc(config: Config) -> dict[str, float]:
    """The sum over all points of HypE's fitness: the error of its mean in standard errors, and how its spread falls."""
    points = np.random.default_rng(7).random((10, 3))
    corner, removed = np.full(3, 1.2), 3
    want = exact_shares(points, corner, removed).sum()
    f, at = torch.from_numpy(points), torch.from_numpy(corner)
    rng = np.random.default_rng(config.seed)
    spread = {}
    for samples in (250, 1000, 4000):
        found = []
        for _ in range(config.estimates):
            u = torch.from_numpy(rng.random((samples, 3)))
            if config.weighted:
                found.append(float(tensor_torch.shares(f, at, u, removed, len(f)).sum()))
            else:
                found.append(float(_unweighted(f, at, u)))
        spread[samples] = np.std(found, ddof=1)
    error = abs(np.mean(found) - want) / (spread[4000] / math.sqrt(len(found)))
    slope = np.polyfit(np.log(list(spread)), np.log(list(spread.values())), 1)[0]
    return {"standard errors": float(error), "slope": float(slope)}


def exact_shares(points: np.ndarray, corner: np.ndarray, removed: int) -> np.ndarray:
    """HypE's fitness without samples: the coordinates of all points cut the box into cells, and each cell is shared."""
    edges = [np.append(np.unique(points[:, k]), corner[k]) for k in range(points.shape[1])]
    lower = np.array(list(itertools.product(*(each[:-1] for each in edges))))
    size = np.array(list(itertools.product(*(np.diff(each) for each in edges)))).prod(axis=1)
    covers = (points[None] <= lower[:, None]).all(axis=2)
    weight = size * tensor_torch.hype_weights(removed, len(points))[covers.sum(axis=1)]
    return (covers * weight[:, None]).sum(axis=0)


def _unweighted(f: torch.Tensor, corner: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    from kernels.pareto import hype_fitness

    low = f.amin(dim=0)
    return (corner - low).prod() * hype_fitness(f, low + u * (corner - low), torch.ones(2, dtype=f.dtype)).sum()


class Elements(TorchDispatchMode):
    """Counts the elements of every array that is made while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        outputs = function(*arguments, **(options or {}))
        self.made += sum(each.numel() for each in tree_leaves(outputs) if isinstance(each, torch.Tensor))
        return outputs


def complexity(config: Config, run: Run) -> dict[str, float]:
    """The exponent of n in the elements that a generation makes, between the two largest populations."""
    found, kept = {}, {}
    for key, name in ((key, NAMES[key]) for key in ("nsga3", "moead")):
        made = {}
        for size in config.count_sizes[-2:]:
            setting = Setting(key, dtlz(2), size)
            made[setting.n] = elements(setting, tensor_torch.step(setting), config.seed)
        (small, few), (large, many) = made.items()
        found[name], kept[name] = math.log(many / few) / math.log(large / small), made
    run.keep("elements of a generation", kept)
    return found


def elements(setting: Setting, step: Callable[[State, Any], State], seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    state = State(*(torch.from_numpy(each).float() for each in setting.start(np.random.default_rng(seed))))
    noise = tensor_torch.draw(setting, generator)
    step(state, noise)  # tables that are made once
    with Elements() as counter:
        step(state, noise)
    return counter.made


def scale_memory(config: Config) -> dict[str, Scalar]:
    """Bytes of all buffers of two compiled programs; nothing is run."""
    import jax
    import jax.numpy as jnp

    from kernels.pareto import non_dominated_rank
    from papers.tensorized_emo import tensor_jax

    n = config.memory_population
    points = jax.ShapeDtypeStruct((n, 3), jnp.float32)
    if not config.tiled:
        return dict.fromkeys(("rank", "survivors"), _bytes(_dense_count, points))
    references = jax.ShapeDtypeStruct(reference_points(n, 3).shape, jnp.float32)
    merged = jax.ShapeDtypeStruct((2 * n, 3), jnp.float32)
    with ThreadPoolExecutor(2) as pool:
        rank = pool.submit(_bytes, non_dominated_rank, points)
        survivors = pool.submit(_bytes, lambda f, w: tensor_jax.survivors(f, n, w), merged, references)
        return {"rank": rank.result(), "survivors": survivors.result()}


def _dense_count(points: Any) -> Any:
    """All pairs with all objectives as one array, kept for the fronts that follow."""
    worse, better = points[:, None] <= points[None], points[:, None] < points[None]
    return worse, better, (worse.all(axis=2) & better.any(axis=2)).sum(axis=0)


def _bytes(function: Any, *shapes: Any) -> int:
    import jax

    analysis: Any = jax.jit(function).lower(*shapes).compile(compiler_options=QUICK).memory_analysis()
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes
