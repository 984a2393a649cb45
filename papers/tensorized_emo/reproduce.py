"""Measure the claims of TensorEMO: ``python -m papers.tensorized_emo.reproduce preset=smoke``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from common.command_line import main
from common.ledger import NotRun, Value
from common.runner import Run
from papers.tensorized_emo import checks, pictures, policies, quality
from papers.tensorized_emo.config import Config

TIMED = (
    "cpu_moead", "cpu_nsga3", "cpu_hype", "vs_pymoo", "vs_evox", "growth", "fair_baseline", "scale_time", "dim_scale",
)  # fmt: skip


def measure(config: Config, run: Run) -> dict[str, Value]:
    if config.robot_population > 1000:
        run.require_gpu(f"the search over {config.robot_population} robots for episodes of {config.robot_steps} steps")
    values: dict[str, Value] = {
        "gpu_speedup": NotRun("needs the paper's GPU; the same comparison on one CPU is in cpu_* and vs_*")
    }
    # Times come first, before anything has warmed the machine or left threads behind.
    if run.busy:
        values |= dict.fromkeys(TIMED, run.busy)
    else:
        values |= timings(config, run)
    with ThreadPoolExecutor(2) as pool:  # what compiles long programs does so beside the searches
        compiled = {
            name: pool.submit(check, config)
            for name, check in (("same_populations", checks.same_populations), ("scale_memory", checks.scale_memory))
            if run.wants(name)
        }
        values |= untimed(config, run)
        values |= {name: each.result() for name, each in compiled.items()}
    return values


def untimed(config: Config, run: Run) -> dict[str, Value]:
    values: dict[str, Value] = {"ref_pts": checks.ref_pts(), "alpha": checks.alpha()}
    if run.wants("same_set"):
        values["same_set"] = checks.same_set(config)
    if run.wants("hype_mc"):
        values["hype_mc"] = checks.hype_mc(config)
    if run.wants("complexity"):
        values["complexity"] = checks.complexity(config, run)
    values |= quality.measure(config, run)
    if run.wants("robot"):
        values["robot"] = policies.measure(config, run)
        for name in config.robots:
            run.figure(f"robot_{name}", lambda name=name: pictures.robot(name, run.details[name]["runs"]))
    return values


def timings(config: Config, run: Run) -> dict[str, Value]:
    """Claims about time; if others were at work meanwhile, none of them counts."""
    from papers.tensorized_emo import speed

    values = speed.measure(config, run)
    return {name: run.busy or value for name, value in values.items()}


if __name__ == "__main__":
    raise SystemExit(main("tensorized_emo"))
