"""Measure the claims of log-Bessel: ``python -m papers.log_bessel.reproduce preset=smoke``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from common import machine
from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.log_bessel import accuracy
from papers.log_bessel.config import Config

VMF = ("vmf2048", "vmf8192", "vmf32768", "vmf_scipy", "vmf_mpmath", "time_vmf")
SPEED = ("scipy_cpu", "cpp_cpu", "cpp_each", "mpmath_cpu", "compacted")


def measure(config: Config, run: Run) -> dict[str, Value]:
    machine.interpret_triton_without_gpu()
    values: dict[str, Value] = {}
    if run.wants("eps", "grad", "backends", "expressions"):
        values |= on_grids(config, run)
    if run.wants("branches"):
        values["branches"] = accuracy.border_gaps(config)
    if run.wants("robust", "robust_gsl"):
        values |= accuracy.failures(config)
    if run.wants(*SPEED):
        values |= speeds(config, run)
    if run.wants(*VMF):
        values |= synthetic_fits(config, run)
    if run.wants("vmf_real"):
        values["vmf_real"] = real_fits(config, run)
    no_gpu = NotRun("needs a GPU with fast float64; the Triton kernel is compiled for it ahead of time, not timed")
    return values | {"gpu_cpp": no_gpu, "gpu_scipy": no_gpu}


def on_grids(config: Config, run: Run) -> dict[str, Value]:
    """Errors over both grids against 40 digits, of values, gradients and backends; the expressions that occur."""
    from papers.log_bessel import pictures
    from papers.log_bessel.kernel import BRANCHES, which_branch

    boxes, scales = accuracy.box(config.box_side), accuracy.scales(config.scales_side)
    order, x = (np.concatenate(pair) for pair in zip(boxes, scales, strict=True))
    chosen = which_branch(order, x)
    values: dict[str, Value] = {"expressions": len(np.unique(chosen))}
    if not run.wants("eps", "grad", "backends"):
        return values
    oracle = accuracy.oracle(order, x, run)
    if run.wants("eps"):
        found = {name: accuracy.errors(accuracy.log(name, config, order, x), oracle[name]) for name in accuracy.LOGS}
        values["eps"] = {
            f"{accuracy.LABEL[name]} {label}": float(np.quantile(errors, q))
            for name, errors in found.items()
            for label, q in (("median", 0.5), ("99.9 %", 0.999))
        }
        run.keep("worst_error", {accuracy.LABEL[name]: errors.max() for name, errors in found.items()})
        by_branch = {b: max(errors[chosen == i].max() for errors in found.values()) for i, b in enumerate(BRANCHES)}
        run.keep("worst_error_by_branch", by_branch)
        naive = {name: accuracy.errors(accuracy.naive(name, order, x), oracle[name]) for name in accuracy.LOGS}
        ends = {"box": slice(0, config.box_side**2), "scales": slice(config.box_side**2, None)}
        for grid, part in ends.items():
            panels = {name: (found[name][part], naive[name][part]) for name in accuracy.LOGS}
            maps = functools.partial(pictures.error_maps, grid, order[part], x[part], chosen[part], panels)
            run.figure(f"errors_{grid}", maps)
    if run.wants("grad"):
        values["grad"] = accuracy.gradient_errors(config, order, x, oracle)
        run.keep("worst_ratio_error", accuracy.ratio_errors(order, x, oracle))
    if run.wants("backends"):
        some = np.linspace(0, len(x) - 1, config.backend_points).astype(int)
        values["backends"] = accuracy.backend_errors(config, order[some], x[some], {n: v[some] for n, v in oracle.items()}, run)
    return values


def speeds(config: Config, run: Run) -> dict[str, Value]:
    if not run.alone:
        return dict.fromkeys(SPEED, run.busy)  # type: ignore[arg-type]
    from papers.log_bessel import pictures, speed

    with run.timing():
        nanoseconds = speed.points(config, run)
        values = speed.ratios(nanoseconds) | {"compacted": speed.compaction(config), "mpmath_cpu": speed.over_mpmath(config)}
        run.keep("nanoseconds_by_branch", speed.by_branch(config))
    run.keep("nanoseconds", nanoseconds)
    run.figure("nanoseconds", lambda: pictures.bars(nanoseconds))
    return values


def synthetic_fits(config: Config, run: Run) -> dict[str, Value]:
    """Samples with a known kappa in each of the paper's dimensions, fitted here and by what a user would take instead."""
    from papers.log_bessel import fits, pictures

    values: dict[str, Value] = {}
    failed: dict[str, dict[str, bool]] = {"SciPy": {}, "mpmath": {}}
    table = {}
    for dim in run.track(fits.DIMS, "fitting vMF"):
        if not run.wants(f"vmf{dim}", "vmf_scipy", "vmf_mpmath", *(["time_vmf"] if dim == max(fits.DIMS) else [])):
            continue
        kappa, rows = fits.sample(config, dim)
        fitted = fits.fit(config, rows)
        values[f"vmf{dim}"] = {"kappa error": fits.gap(fitted.kappa, kappa), "residual": fits.residual(dim, fitted)}
        others = fits.alternatives(rows, fitted)
        table[str(dim)] = {"true kappa": kappa, "kappa": fitted.kappa, "R": fitted.resultant, **others}
        for library, by_dim in failed.items():
            by_dim[str(dim)] = fits.gap(others[library], fitted.kappa) > 0.01
        if dim == max(fits.DIMS):
            run.figure("likelihood", functools.partial(pictures.likelihood, dim, fitted, kappa))
            values["time_vmf"] = _time_of_fit(config, run, rows)
    run.keep("synthetic_fits", table)
    return values | {"vmf_scipy": failed["SciPy"], "vmf_mpmath": failed["mpmath"]}


def _time_of_fit(config: Config, run: Run, rows: Any) -> Value:
    from common.meter import median_seconds
    from papers.log_bessel import fits

    if not run.alone or not run.wants("time_vmf"):
        return run.busy or NotRun("not asked for")
    with run.timing():
        return median_seconds({"fit": lambda: fits.fit(config, rows)}, repeats=config.repeats)["fit"]


def real_fits(config: Config, run: Run) -> Value:
    """Features of the King James text's verses (and images, where the user has them): what is left of the score equation."""
    from papers.log_bessel import fits

    residuals, table = {}, {}
    for name, rows in fits.feature_sets(config, run):
        fitted = fits.fit(config, rows)
        residuals[name] = fits.residual(rows.shape[1], fitted)
        others = fits.alternatives(rows, fitted)
        table[name] = {"rows": len(rows), "R": fitted.resultant, "kappa": fitted.kappa, **fits.held_out(rows), **others}
    run.keep("real_fits", table)
    return residuals


if __name__ == "__main__":
    raise SystemExit(main("log_bessel"))
