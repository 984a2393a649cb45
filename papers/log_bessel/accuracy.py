"""Errors against 40 digits: of values, gradients, backends, at the borders of the branches; and results that are not finite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from common.ledger import NotRun, Value
from common.runner import Run
from papers.log_bessel import atlas, baseline
from papers.log_bessel.config import Branch, Config, Method
from papers.log_bessel.kernel import BRANCHES, bessel_ratio, cases, log_bessel_i, log_bessel_k, which_branch

LOGS: dict[str, Callable[..., Any]] = {"log_i": log_bessel_i, "log_k": log_bessel_k}
LABEL = {"log_i": "log I", "log_k": "log K"}
Points = Float[np.ndarray, " points"]


def box(side: int) -> tuple[Points, Points]:
    """The centres of side x side cells of [0, 150]^2."""
    middle = (np.arange(side) + 0.5) * 150 / side
    order, x = np.meshgrid(middle, middle, indexing="ij")
    return order.ravel(), x.ravel()


def scales(side: int) -> tuple[Points, Points]:
    """side x side points, the order from 1e-3 to 1e5 and x from 1e-6 to 1e6, each in equal ratios."""
    order, x = np.meshgrid(np.logspace(-3, 5, side), np.logspace(-6, 6, side), indexing="ij")
    return order.ravel(), x.ravel()


def scattered(config: Config, count: int) -> tuple[Points, Points]:
    """Random points over the same scales, one in a hundred of them at order 0."""
    rng = np.random.default_rng(config.seed)
    order, x = 10 ** rng.uniform(-3, 5, count), 10 ** rng.uniform(-6, 6, count)
    order[::100] = 0
    return order, x


def oracle(order: Points, x: Points, run: Run) -> dict[str, Points]:
    """Logarithms, the slope of each in x, and I_(v+1) / I_v, from 40 digits rounded once; resumes after a kill."""
    import mpmath

    from papers.log_bessel.kernel.reference import DIGITS, bessel_i, bessel_k

    kept = run.checkpoint("oracle")
    saved = kept.load()
    rows = [] if saved is None else saved[0]["rows"].tolist()
    left = list(zip(order.tolist(), x.tolist(), strict=True))[len(rows) :]
    with mpmath.workdps(DIGITS):
        for v, z in run.track(left, "computing to 40 digits"):
            (log_i, ratio_i), (log_k, ratio_k) = bessel_i(v, z), bessel_k(v, z)
            quotient = v / mpmath.mpf(z)
            rows.append([float(each) for each in (log_i, log_k, quotient + ratio_i, quotient - ratio_k, ratio_i)])
            if len(rows) % 5000 == 0:
                kept.save({"rows": np.array(rows)})
    return dict(zip(("log_i", "log_k", "slope_i", "slope_k", "ratio_i"), np.array(rows).T, strict=True))


def errors(got: Points, want: Points) -> Points:
    """Relative, absolute where the logarithm is within 1 of zero; 1 at most, which stands for what is not finite, too."""
    return np.minimum(atlas.errors(got, want), 1)


def log(name: str, config: Config, order: Points, x: Points) -> Points:
    if config.method is Method.naive:
        return naive(name, order, x)
    return LOGS[name](torch.from_numpy(order), torch.from_numpy(x), variant=config.method.value).numpy()


def naive(name: str, order: Points, x: Points) -> Points:
    return getattr(baseline, name)(order, x)


def gradient_errors(config: Config, order: Points, x: Points, want: dict[str, Points]) -> dict[str, float]:
    """The worst relative error of each gradient in x, by framework."""

    def by_torch(name: str) -> Points:
        z = torch.from_numpy(x).requires_grad_()
        value = LOGS[name](torch.from_numpy(order), z, variant=config.method.value)
        return torch.autograd.grad(value.sum(), z)[0].numpy()

    def by_jax(name: str) -> Points:
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            v = jnp.asarray(order)
            return np.asarray(jax.jit(jax.grad(lambda z: LOGS[name](v, z).sum()))(jnp.asarray(x)))

    def by_differences(name: str) -> Points:
        return getattr(baseline, name.replace("log", "slope"))(order, x)

    ways = {"torch": by_torch, "JAX": by_jax}
    if config.method is Method.naive:
        ways = dict.fromkeys(ways, by_differences)
    return {
        f"{framework} {LABEL[name]}": _worst(way(name), want[name.replace("log", "slope")])
        for framework, way in ways.items()
        for name in LOGS
    }


def ratio_errors(order: Points, x: Points, want: dict[str, Points]) -> dict[str, float]:
    """I_(v+1) / I_v as it is computed here, and as exp of the difference of two right logarithms."""
    v, z = torch.from_numpy(order), torch.from_numpy(x)
    difference = torch.exp(log_bessel_i(v + 1, z) - log_bessel_i(v, z))
    return {
        "ratio": _worst(bessel_ratio(v, z).numpy(), want["ratio_i"]),
        "difference of logarithms": _worst(difference.numpy(), want["ratio_i"]),
    }


def backend_errors(config: Config, order: Points, x: Points, want: dict[str, Points], run: Run) -> dict[str, float]:
    """The worst error of both logarithms for each backend and variant, computed in float64."""
    import jax
    import jax.numpy as jnp

    branch = None if config.branch is Branch.chosen else config.branch.value
    ways: dict[str, dict[str, Any]] = {f"torch {v}": {"variant": v} for v in ("masked", "compacted", "compiled")}
    ways |= {name: {"backend": name} for name in ("triton", "jax", "pallas")}
    found = {}
    for name, options in run.track(list(ways.items()), "comparing backends"):
        worst = 0.0
        for log_name, function in LOGS.items():
            if name in ("jax", "pallas"):
                with jax.enable_x64(True):
                    call = jax.jit(functools.partial(function, branch=branch, **options))
                    got = np.asarray(call(jnp.asarray(order), jnp.asarray(x)))
            else:
                got = function(torch.from_numpy(order), torch.from_numpy(x), branch=branch, **options).numpy()
            worst = max(worst, float(errors(got, want[log_name]).max()))
        found[name] = worst
    return found


def border_gaps(config: Config) -> dict[str, float]:
    """The largest difference of two neighbouring expressions at the points next to their border, relative as ``errors``.

    A forced ``config.branch`` takes the place of the expression on one side.
    """
    order, x = cases.borders()
    chosen = which_branch(order, x)
    below, above = slice(0, None, 2), slice(1, None, 2)
    crossing = chosen[below] != chosen[above]
    order, x = torch.from_numpy(order[below][crossing]), torch.from_numpy(x[below][crossing])
    sides = list(zip(chosen[below][crossing].tolist(), chosen[above][crossing].tolist(), strict=True))
    gaps = {}
    for name, function in LOGS.items():
        by_branch = np.stack([function(order, x, branch=branch).numpy() for branch in BRANCHES])
        place = np.arange(len(sides))
        one, other = np.array(sides).T
        if config.branch is not Branch.chosen:
            one = np.full_like(one, BRANCHES.index(config.branch.value))
        gaps[LABEL[name]] = float(errors(by_branch[one, place], by_branch[other, place]).max())
    return gaps


def failures(config: Config) -> dict[str, Value]:
    """The share of scattered points at which a result is not finite: ours, SciPy's, the GNU Scientific Library's."""
    order, x = scattered(config, config.robust_points)

    def share(values: Points) -> float:
        return float(1 - np.isfinite(values).mean())

    ours = {f"ours {LABEL[name]}": share(log(name, config, order, x)) for name in LOGS}
    values: dict[str, Value] = {"robust": {**ours, **{f"SciPy {LABEL[name]}": share(naive(name, order, x)) for name in LOGS}}}
    if cases.GSL is None:
        return values | {"robust_gsl": NotRun(f"GSL: {cases.MISSING['GSL']}", busy=True)}
    v, z = torch.from_numpy(order), torch.from_numpy(x)
    gsl = {"GSL log I": share(cases.gsl_log_i(v, z).numpy()), "GSL log K": share(cases.gsl_log_k(v, z).numpy())}
    return values | {"robust_gsl": {**ours, **gsl}}


def _worst(got: Points, want: Points) -> float:
    """The largest relative error, 1 at most; not finite counts as 1."""
    gap = np.abs(got - want) / np.abs(want)
    return float(np.minimum(np.where(np.isfinite(gap), gap, 1), 1).max())
