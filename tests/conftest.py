"""Set before anything is imported: kernels are interpreted, one thread for each worker, figures without a screen."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("MPLBACKEND", "agg")
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import collections
import json
from pathlib import Path

import hypothesis
import pytest

# What one run has compiled, the next one takes: controls, notebooks and tests of a paper compile mostly the same.
_KEPT = Path(os.environ.get("REPRODUCTION_OUTPUTS") or Path(__file__).parents[1] / "outputs") / ".kept"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_KEPT / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

hypothesis.settings.register_profile("house", deadline=None, max_examples=30, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")

PAPER_PLAN, PAPER_LIMIT = 90.0, 1200.0
"""Seconds of all tests of one paper: over the plan it is named in the summary, over the limit the run fails. 40 is what eighty
papers allow; the limit is wide because seconds on a busy machine say little, and still stops a paper that runs away."""


def pytest_collection_modifyitems(items):
    """Name the paper or operation that a test belongs to: its group for the workers, its line in the summary."""
    for item in items:
        values = getattr(item, "callspec", None)
        # An empty parametrisation carries a placeholder instead of a value.
        slug = values.params.get("slug") if values else None
        slug = slug if isinstance(slug, str) and slug[:1].isalpha() else None
        operation = getattr(values.params.get("operation"), "id", None) if values else None
        folder, name = item.path.parent.name, item.path.stem.removeprefix("test_")
        if folder == "papers":
            slug = slug or next((mark.args[0] for mark in item.iter_markers("xdist_group")), name)
        if slug:
            item.add_marker(pytest.mark.xdist_group(slug))
        if folder == "papers" and name.endswith("_kernel"):
            slug = None  # a paper's own kernel has the budget of a kernel
        owner = f"paper {slug}" if slug else f"operation {operation}" if operation else f"{folder} {name}"
        item.user_properties.append(("owner", owner))


def pytest_terminal_summary(terminalreporter):
    _keep_operations(terminalreporter)
    seconds = _seconds(terminalreporter)
    if sum(seconds.values()) < 20:
        return
    terminalreporter.section("core-seconds by paper and operation")
    for owner, value in sorted(seconds.items()):
        terminalreporter.write_line(f"{value:7.1f}  {owner}")
    papers = [value for owner, value in seconds.items() if owner.startswith("paper ")]
    if papers:
        rest = sum(seconds.values()) - sum(papers)
        whole = (82 * sum(papers) / len(papers) + rest) / 2 / 60
        terminalreporter.write_line(f"projected to 82 papers like these on 2 cores: {whole:.0f} min (limit 40)")


def pytest_sessionfinish(session, exitstatus):
    """A paper over its plan is named; one over its limit fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter is None
        or hasattr(session.config, "workerinput")
        or session.config.getoption("markexpr") != "not slow and not gpu"
    ):
        return
    seconds = {o.removeprefix("paper "): v for o, v in _seconds(reporter).items() if o.startswith("paper ")}
    if over := {owner: round(value) for owner, value in seconds.items() if value > PAPER_PLAN}:
        reporter.write_line(f"over the plan of {PAPER_PLAN:.0f} s: {over}", yellow=True)
    if over := {owner: round(value) for owner, value in seconds.items() if value > PAPER_LIMIT}:
        reporter.write_line(f"over the limit of {PAPER_LIMIT:.0f} s: {over}", red=True)
        session.exitstatus = session.exitstatus or 1


def _seconds(reporter):
    """{owner: seconds} over all phases of all tests; set-up, call and tear-down are reports of their own."""
    seconds = collections.Counter()
    for report in (each for reports in reporter.stats.values() for each in reports):
        owner = dict(getattr(report, "user_properties", ())).get("owner")
        if owner and hasattr(report, "duration"):
            seconds[owner] += report.duration
    return seconds


def _keep_operations(reporter):
    """Put what the tests found of the operations into outputs/operations.json, for the report."""
    from common.checkpoint import write_whole
    from common.locks import outputs

    path = outputs() / "operations.json"
    whole = json.loads(path.read_text()) if path.exists() else {"agreement": {}, "compiled": []}
    found = [pair for report in reporter.stats.get("passed", ()) for pair in getattr(report, "user_properties", ())]
    agreement = [value for name, value in found if name == "agreement"]
    compiled = {(each["kernel"], each["target"]): each for each in whole["compiled"]}
    compiled |= {(value["kernel"], value["target"]): value for name, value in found if name == "compiled"}
    if not agreement and len(compiled) == len(whole["compiled"]):
        return
    for operation in {each[0] for each in agreement}:
        whole["agreement"].pop(operation, None)
    for operation, backend, dtype, error in agreement:
        kept = whole["agreement"].setdefault(operation, {}).setdefault(backend, {})
        kept[dtype] = max(error, kept.get(dtype, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({**whole, "compiled": list(compiled.values())}, indent=1).encode())


@pytest.fixture(scope="session")
def compiler():
    """Compiles Triton kernels for absent GPUs, in a process that does not interpret."""
    from common.ahead_of_time import Compiler

    with Compiler() as found:
        yield found
