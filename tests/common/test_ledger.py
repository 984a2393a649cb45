"""Bars, verdicts, and a ledger file whose mistakes are named."""

import math

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from common import UserError
from common.ledger import Claim, NotRun, Verdict, grade, holds, read, worse

CLAIM = {
    "id": "speed",
    "says": "fast",
    "figure": 2.0,
    "unit": "times",
    "source": "abstract",
    "where": "abstract",
    "evidence": "measured",
    "agrees": "± 5 %",
    "direction": "> 1",
    "control": {"fault": True},
    "how": "timed",
}
BOOK = {"title": "t", "authors": "a", "year": 2024, "venue": "v", "track": "1", "summary": "s", "bibtex": "b"}


@pytest.mark.parametrize(
    ("bar", "figure", "inside", "outside"),
    [
        ("equal", 3, [3, 3.0], [3.0000001, math.nan]),
        ("± 5 %", 2.0, [1.9, 2.1, 2], [1.899, 2.101, -2]),
        ("± 5 %", -2.0, [-1.9, -2.1], [2.0]),
        ("± 0.01", 1.0, [1.005, 0.995], [1.02]),
        (">= 1.7", None, [1.7, 9, math.inf], [1.69, math.nan]),
        ("> 1", None, [1.0000001], [1, 0]),
        ("<= 1e-9", None, [1e-9, 0, -1], [2e-9, math.inf]),
        ("< 1", None, [0.5], [1]),
        ("0.66..0.70", None, [0.66, 0.7], [0.659, 0.71]),
        ("equal", True, [True], [False]),
    ],
)
def test_bar(bar, figure, inside, outside):
    assert all(holds(bar, value, figure) for value in inside)
    assert not any(holds(bar, value, figure) for value in outside)


def test_bar_over_names_holds_for_all_of_them():
    figure = {"a": 1.0, "b": 2.0}
    assert holds("± 10 %", {"a": 1.05, "b": 2.1}, figure)
    assert not holds("± 10 %", {"a": 1.05, "b": 2.5}, figure)
    assert not holds("± 10 %", {"a": 1.0}, figure), "a name that was not found"
    assert not holds("± 10 %", {"a": 1.0, "b": 2.0, "c": 3.0}, figure), "a name that the paper does not have"
    assert holds({"a": "> 0", "b": "<= 3"}, {"a": 1, "b": 3}, None)
    assert not holds({"a": "> 0"}, 5, None)


@given(st.floats(0.01, 1e6), st.floats(0, 50), st.floats(-2, 2))
def test_percentage_is_a_symmetric_interval(figure, width, where):
    value = figure * (1 + where * width / 100)
    if abs(abs(where) - 1) > 1e-6 and width > 1e-6:
        assert holds(f"± {width:.12f} %", value, figure) == (abs(where) < 1)


def test_verdicts():
    claim = Claim(**CLAIM)
    assert grade(claim, 2.05, "laptop") is Verdict.REDUCED
    assert grade(claim, 2.05, "paper") is Verdict.AGREES
    assert grade(claim, 1.5, "laptop") is Verdict.DIRECTION
    assert grade(claim, 0.5, "laptop") is Verdict.DISAGREES
    assert grade(claim, NotRun("no GPU"), "laptop") is Verdict.NOT_RUN
    assert grade(Claim(**{**CLAIM, "reduced": False}), 2.0, "smoke") is Verdict.AGREES
    assert grade(Claim(**{**CLAIM, "agrees_smoke": ">= 1"}), 1.5, "smoke") is Verdict.REDUCED
    modelled = Claim(**{**CLAIM, "evidence": "modelled"})
    assert grade(modelled, 2.0, "laptop") is Verdict.AGREES
    fitted = Claim(**{**CLAIM, "evidence": "calibration", "fits": "c"})
    assert grade(fitted, 2.0, "laptop") is Verdict.CONSISTENT
    assert grade(fitted, 3.0, "laptop") is Verdict.INCONSISTENT


def test_worse():
    assert worse(Verdict.DISAGREES, Verdict.REDUCED)
    assert worse(Verdict.REDUCED, Verdict.AGREES)
    assert not worse(Verdict.AGREES, Verdict.DISAGREES)
    assert not worse(Verdict.NOT_RUN, Verdict.AGREES)
    assert worse(Verdict.INCONSISTENT, Verdict.CONSISTENT)


def _without(*names):
    return {name: value for name, value in CLAIM.items() if name not in names}


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({**CLAIM, "figur": 3}, r"claims\.speed\.figur: unknown field"),
        (_without("how"), r"claims\.speed\.how: missing"),
        ({**CLAIM, "agrees": "about 3"}, r"claims\.speed: bar 'about 3' is not one of"),
        ({**CLAIM, "evidence": "guessed"}, r"claims\.speed\.evidence"),
        ({**CLAIM, "source": "rumour"}, r"claims\.speed\.source: is 'rumour'"),
        (_without("control"), r"names either a control"),
        ({**CLAIM, "no_control": "why"}, r"names either a control"),
        ({**CLAIM, "evidence": "calibration"}, r"in fits"),
        (_without("agrees"), r"no bar"),
        (_without("figure"), r"the claim has none"),
        ({**CLAIM, "figure": {"a": 1}, "agrees": {"b": "> 1"}}, r"'b', which the figure does not name"),
    ],
)
def test_mistake_in_the_file_is_named(tmp_path, claim, says):
    path = tmp_path / "expected.yaml"
    path.write_text(yaml.safe_dump({**BOOK, "claims": [claim]}))
    with pytest.raises(UserError, match=says) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_mistakes(tmp_path):
    path = tmp_path / "expected.yaml"
    with pytest.raises(UserError, match="no ledger"):
        read(path)
    path.write_text("a: [1, 2")
    with pytest.raises(UserError, match="not YAML"):
        read(path)
    path.write_text(yaml.safe_dump({**BOOK, "claims": [CLAIM, CLAIM]}))
    with pytest.raises(UserError, match="two claims have the id 'speed'"):
        read(path)
    path.write_text("- 1\n")
    with pytest.raises(UserError):
        read(path)
