"""What every paper owes, checked from its ledger: it is produced by a run that cannot see it, and loses its effect
when the mechanism is switched off."""

import ast
import dataclasses
import importlib
import json
import math
from collections.abc import Mapping

import pytest

from common import ROOT, ledger, records, runner
from common.config import describe
from common.ledger import NotRun, Verdict
from common.plain import from_plain

SLUGS = runner.papers()
pytestmark = pytest.mark.parametrize("slug", SLUGS)


def test_room_is_whole(slug):
    room = ROOT / "papers" / slug
    for path in (
        room / "__init__.py",
        room / "reproduce.py",
        room / "README.md",
        ROOT / "notebooks" / f"{slug}.ipynb",
        ROOT / "tests" / "papers" / f"test_{slug}.py",
    ):
        assert path.exists(), f"missing: {path.relative_to(ROOT)}"
    assert importlib.import_module(f"papers.{slug}").__doc__
    presets = runner.presets(slug)
    assert list(presets) == ["smoke", "laptop", "paper"]
    assert len({type(preset) for preset in presets.values()}) == 1
    assert {field.name for field in dataclasses.fields(presets["smoke"])} >= {"seed"}
    assert all(meaning for _, _, meaning in describe(presets["smoke"])), "every field of a config has a meaning"


def test_run_produces_the_ledger_and_nothing_else(slug):
    results = runner.run_or_load(slug, "smoke")
    rows = records.judge(slug, ledger.load(slug), results)
    for name, row in rows.items():
        value = from_plain(row["value"])
        if isinstance(value, Mapping):
            assert value, name
        assert isinstance(value, NotRun) or not any(_is_nan(each) for each in _scalars(value)), f"{name} is NaN"


def test_verdicts_are_not_worse_than_recorded(slug):
    book, results = ledger.load(slug), runner.run_or_load(slug, "smoke")
    rows = records.judge(slug, book, results)
    assert records.regressions(book, results, rows, records.record(slug).get("smoke", {})) == []


def test_controls_break_the_claims(slug):
    _check_controls(slug, slow=False)


@pytest.mark.slow
def test_dear_controls_break_the_claims(slug):
    _check_controls(slug, slow=True)


def _check_controls(slug, slow):
    book, groups = ledger.load(slug), {}
    for claim in book.claims:
        if claim.control is not None and not claim.timing and claim.control_slow == slow:
            groups.setdefault(json.dumps(claim.control, sort_keys=True), []).append(claim.id)
    for control, names in groups.items():
        values = runner.run_or_load(slug, "smoke", control=json.loads(control), only=names)["claims"]
        for name in names:
            value = from_plain(values[name])
            if isinstance(value, NotRun) and value.busy:
                continue  # a peer that is not installed
            verdict = ledger.grade(book.by_id[name], value, "smoke")
            assert verdict not in (Verdict.AGREES, Verdict.REDUCED), f"{name} still agrees with {control}: {values[name]}"
            assert verdict is not Verdict.NOT_RUN, f"the control of {name} was not run"


def test_controls_name_options(slug):
    fields = {field.name for field in dataclasses.fields(runner.presets(slug)["smoke"])}
    for claim in ledger.load(slug).claims:
        assert set(claim.control or {}) <= fields, claim.id


def test_no_published_figure_stands_in_the_code(slug):
    """A figure with three or more significant digits may stand in published.py alone, and never if it is predicted."""
    figures = {
        float(each)
        for claim in ledger.load(slug).claims
        for each in _scalars(claim.figure)
        if not isinstance(each, bool) and len(f"{abs(each):.15g}".replace(".", "").strip("0")) >= 3
    }
    for path in (ROOT / "papers" / slug).rglob("*.py"):
        if path.name == "published.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                assert float(node.value) not in figures, f"{path.name}:{node.lineno} holds the published figure {node.value}"


def test_record_is_what_the_ledger_says_of_it(slug):
    book, whole = ledger.load(slug), records.record(slug)
    assert {"smoke", "laptop"} <= set(whole), "record both: python -m papers.<slug>.reproduce preset=... --record"
    for preset, entry in whole.items():
        assert list(entry["claims"]) == [claim.id for claim in book.claims], f"the {preset} record is older than the ledger"
        for name, row in entry["claims"].items():
            assert str(ledger.grade(book.by_id[name], from_plain(row["value"]), preset)) == row["verdict"], (preset, name)
        for name, row in entry["controls"].items():
            assert row["verdict"] not in ("agrees", "agrees at reduced scale"), f"{name}: its recorded control agrees"
    timed = {claim.id for claim in book.claims if claim.timing and claim.control is not None}
    assert timed <= set(whole["laptop"]["controls"]), "record the laptop preset with --controls too"


def test_readme_shows_the_record(slug):
    readme = (ROOT / "papers" / slug / "README.md").read_text(encoding="utf-8")
    assert readme == records.with_table(readme, ledger.load(slug), records.record(slug)), "run nox -s report -- --readme"


def _scalars(value):
    if isinstance(value, Mapping):
        return [each for nested in value.values() for each in _scalars(nested)]
    return [] if value is None or isinstance(value, NotRun) else [value]


def _is_nan(value):
    return isinstance(value, float) and math.isnan(value)
