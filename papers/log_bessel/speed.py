"""Time of a point: ours against SciPy, the GNU Scientific Library and mpmath, over regions and numbers of points."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from common.ledger import NotRun, Value
from common.meter import median_seconds
from common.runner import Run
from common.threads import torch_threads
from papers.log_bessel import accuracy, baseline
from papers.log_bessel.accuracy import LABEL, LOGS
from papers.log_bessel.config import Config, Method
from papers.log_bessel.kernel import BRANCHES, cases, which_branch

Seconds = dict[str, float]
Table = dict[str, Seconds]

GSL = {"log_i": cases.gsl_log_i, "log_k": cases.gsl_log_k}


def points(config: Config, run: Run) -> Table:
    """{set of points: {provider: nanoseconds of a point}}, all providers in turns on the same points."""
    table = {}
    sets = [(name, region, size) for name in LOGS for region in ("box", "scales") for size in config.sizes]
    for name, region, size in run.track(sets, "timing"):
        order, x = random_points(config, region, size)
        seconds = median_seconds(_providers(config, name, order, x), repeats=config.repeats, least=0.02)
        table[f"{LABEL[name]}, {region}, {size:,}"] = {provider: 1e9 * value / size for provider, value in seconds.items()}
    return table


def ratios(table: Table) -> dict[str, Value]:
    """Median and maximum of the speed-up over all sets: over SciPy for both our paths, over GSL for the compiled one."""

    def of(peer: str, ours: str) -> np.ndarray:
        return np.array([row[peer] / row[ours] for row in table.values()])

    paths = {path: of("SciPy", path) for path in ("torch", "JAX")}
    best = max(paths.values(), key=np.median)
    scipy = {"median": float(np.median(best)), "maximum": float(best.max())}
    for path, found in paths.items():
        scipy |= {f"{path} median": float(np.median(found)), f"{path} maximum": float(found.max())}
    single = of("SciPy", "torch, one thread")
    scipy |= {"one thread median": float(np.median(single)), "one thread maximum": float(single.max())}
    if cases.GSL is None:
        missing = NotRun(f"GSL: {cases.MISSING['GSL']}", busy=True)
        return {"scipy_cpu": scipy, "cpp_cpu": missing, "cpp_each": missing}
    gsl, single = of("GSL", "torch"), of("GSL", "torch, one thread")
    cpp = {
        "median": float(np.median(gsl)),
        "maximum": float(gsl.max()),
        "one thread median": float(np.median(single)),
        "one thread maximum": float(single.max()),
    }
    each = {name: float(np.median(gsl[[key.startswith(name) for key in table]])) for name in LABEL.values()}
    return {"scipy_cpu": scipy, "cpp_cpu": cpp, "cpp_each": each}


def over_mpmath(config: Config) -> dict[str, float]:
    """Times that the same points take mpmath, for the box: beyond it mpmath's series has as many terms as x is large."""
    order, x = random_points(config, "box", max(config.sizes))
    few = np.linspace(0, len(x) - 1, config.mpmath_points).astype(int)
    found = {}
    for name, other in (("log_i", "besseli"), ("log_k", "besselk")):
        theirs = functools.partial(baseline.mpmath_log, other, order[few], x[few])
        seconds = median_seconds({"mpmath": theirs, "ours": _torch_call(config, name, order, x)}, config.repeats)
        found[LABEL[name]] = seconds["mpmath"] / len(few) / (seconds["ours"] / len(x))
    return found


def compaction(config: Config) -> dict[str, float]:
    """Masked over compacted time on as many points of each region; a method that is masked itself has 1."""
    half = max(config.sizes) // 2
    order, x = (np.concatenate(pair) for pair in zip(*(random_points(config, r, half) for r in ("box", "scales")), strict=True))
    v, z = torch.from_numpy(order), torch.from_numpy(x)
    ours = "masked" if config.method is Method.masked else "compacted"
    found = {}
    for name, function in LOGS.items():
        calls = {way: lambda f=function, v=v, z=z, w=w: f(v, z, variant=w) for way, w in (("masked", "masked"), ("ours", ours))}
        seconds = median_seconds(calls, repeats=config.repeats)
        found[LABEL[name]] = seconds["masked"] / seconds["ours"]
    return found


def by_branch(config: Config) -> dict[str, dict[str, float]]:
    """Nanoseconds of a point of each branch, where all points are of this branch."""
    order, x = accuracy.scattered(config, 100_000)
    more = random_points(config, "box", 100_000)
    order, x = np.concatenate([order, more[0]]), np.concatenate([x, more[1]])
    chosen, count = which_branch(order, x), min(config.sizes[-1], 100_000)
    table = {}
    for index, branch in enumerate(BRANCHES):
        mine = np.resize(np.flatnonzero(chosen == index), count)
        v, z = torch.from_numpy(order[mine]), torch.from_numpy(x[mine])
        calls = {LABEL[name]: lambda f=function, v=v, z=z: f(v, z) for name, function in LOGS.items()}
        table[branch] = {name: 1e9 * s / count for name, s in median_seconds(calls, repeats=config.repeats).items()}
    return table


def random_points(config: Config, region: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform over [0, 150]^2, or the scattered points of all scales."""
    if region == "scales":
        return accuracy.scattered(config, count)
    rng = np.random.default_rng(config.seed)
    return rng.uniform(0, 150, count), rng.uniform(1e-6, 150, count)


def _providers(config: Config, name: str, order: np.ndarray, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    ours = _torch_call(config, name, order, x)

    def one_thread() -> None:
        with torch_threads(1):
            ours()

    with jax.enable_x64(True):
        v, z = jnp.asarray(order), jnp.asarray(x)
    compiled = jax.jit(LOGS[name])

    def by_jax() -> None:
        with jax.enable_x64(True):
            compiled(v, z).block_until_ready()

    naive = config.method is Method.naive
    found = {
        "SciPy": lambda: accuracy.naive(name, order, x),
        "torch": ours,
        "torch, one thread": one_thread,
        "JAX": ours if naive else by_jax,
    }
    if cases.GSL is not None:
        tensors = torch.from_numpy(order), torch.from_numpy(x)
        found["GSL"] = lambda: GSL[name](*tensors)
    return found


def _torch_call(config: Config, name: str, order: np.ndarray, x: np.ndarray) -> Callable[[], Any]:
    return lambda: accuracy.log(name, config, order, x)
