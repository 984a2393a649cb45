"""The ledger of claims: what a paper says, the bar it is held to, and the verdict on what was found here.

A paper's ``expected.yaml`` lists its claims. A *bar* is one of

    equal            the figure itself            ± 5 %, ± 0.01     around the figure
    >= 1.7, < 1      a bound                      0.66..0.70        a closed interval

or a mapping of bars by name; a bar for a figure that is a mapping holds for each of its names. The measurement never
sees this file: the runner compares afterwards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from common import ROOT, UserError

Scalar = bool | int | float
Figure = Scalar | dict[str, Scalar]


class Evidence(StrEnum):
    """How a value was come by; exactly one for each claim."""

    COUNTED = "counted"  # something built here was counted
    MEASURED = "measured"  # run here, at real speed, at reduced scale
    EMULATED = "emulated"  # real processes and data; budgets, throttles or sleeps stand in for hardware
    MODELLED = "modelled"  # a performance model or simulator with the paper's hardware
    ARITHMETIC = "arithmetic"  # the paper's own figures combined; never counts as a reproduction
    CALIBRATION = "calibration"  # used to fit a constant; never counts
    GPU = "gpu"  # needs a device that may be missing


class Verdict(StrEnum):
    """In falling order; ``consistent`` and ``inconsistent`` are for claims that never count as a reproduction."""

    AGREES = "agrees"
    REDUCED = "agrees at reduced scale"
    DIRECTION = "direction only"
    DISAGREES = "disagrees"
    NOT_RUN = "not run"
    CONSISTENT = "consistent"
    INCONSISTENT = "inconsistent"


@dataclass(frozen=True)
class NotRun:
    """Stands for the value of a claim that could not be run here.

    ``busy`` says that only the circumstances were wrong, the moment or a peer that is not installed: no regression.
    """

    reason: str
    busy: bool = False

    @classmethod
    def without(cls, package: str) -> NotRun:
        """For want of a package that is only compared with, which the reproductions' own environment leaves out."""
        return cls(f"{package} is not installed; pip install -c constraints.txt -e '.[peers]' in .venv brings it", busy=True)


Value = Figure | NotRun


class Claim(BaseModel):
    """One row: what the paper says, where, and how it is held against what was found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    says: str
    figure: Figure | None = None
    unit: str
    source: str
    where: str
    evidence: Evidence
    agrees: str | dict[str, str] | None = None
    direction: str | dict[str, str] | None = None
    agrees_smoke: str | dict[str, str] | None = None
    control: dict[str, Any] | None = None
    no_control: str | None = None
    control_slow: bool = False
    fits: str | None = None
    timing: bool = False
    reduced: bool = True
    how: str

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        if source not in ("abstract", "paper", "code", "recalled"):
            raise ValueError(f"is {source!r}, wanted abstract, paper, code or recalled")
        return source

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        needs_control = self.evidence in (Evidence.MEASURED, Evidence.EMULATED, Evidence.MODELLED)
        if needs_control and (self.control is None) == (self.no_control is None):
            raise ValueError(f"a {self.evidence} claim names either a control or, in no_control, why none can exist")
        if self.evidence is Evidence.CALIBRATION and not self.fits:
            raise ValueError("a calibration claim names, in fits, the constant that was fitted on it")
        if self.agrees is None and self.evidence is not Evidence.GPU:
            raise ValueError("has no bar: add agrees")
        for bar in (self.agrees, self.direction, self.agrees_smoke):
            _check_bar(bar, self.figure)
        return self


class Ledger(BaseModel):
    """A paper's ``expected.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    authors: str
    year: int
    venue: str
    arxiv: str | None = None
    code: str | None = None
    track: str
    summary: str
    bibtex: str
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _unique(self) -> Ledger:
        ids = [claim.id for claim in self.claims]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"two claims have the id {twice[0]!r}")
        return self

    @cached_property
    def by_id(self) -> dict[str, Claim]:
        return {claim.id: claim for claim in self.claims}


def load(slug: str) -> Ledger:
    """The ledger of a paper; a mistake in the file is a :class:`UserError` that names file and field."""
    return read(ROOT / "papers" / slug / "expected.yaml")


def read(path: Path) -> Ledger:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no ledger here") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return Ledger.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, raw)}") from error


def holds(bar: str | Mapping[str, str], value: Figure, figure: Figure | None) -> bool:
    """Whether a value meets a bar. A mapping meets it if every name does; NaN never does."""
    if isinstance(bar, Mapping):
        return isinstance(value, Mapping) and all(
            name in value and holds(each, value[name], figure.get(name) if isinstance(figure, Mapping) else figure)
            for name, each in bar.items()
        )
    if isinstance(value, Mapping):
        names = set(figure) if isinstance(figure, Mapping) else set(value)
        return names == set(value) and all(
            holds(bar, value[name], figure[name] if isinstance(figure, Mapping) else figure) for name in names
        )
    low, high, low_open, high_open = _interval(bar, figure)
    return (low < value if low_open else low <= value) and (value < high if high_open else value <= high)


def grade(claim: Claim, value: Value, preset: str) -> Verdict:
    """The verdict on a value that was found under a preset."""
    if isinstance(value, NotRun):
        return Verdict.NOT_RUN
    bar = claim.agrees_smoke if preset == "smoke" and claim.agrees_smoke is not None else claim.agrees
    met = bar is not None and holds(bar, value, claim.figure)
    if claim.evidence in (Evidence.ARITHMETIC, Evidence.CALIBRATION):
        return Verdict.CONSISTENT if met else Verdict.INCONSISTENT
    if met:
        scaled = claim.reduced and preset != "paper" and claim.evidence in (Evidence.MEASURED, Evidence.EMULATED)
        return Verdict.REDUCED if scaled else Verdict.AGREES
    if claim.direction is not None and holds(claim.direction, value, claim.figure):
        return Verdict.DIRECTION
    return Verdict.DISAGREES


def worse(now: Verdict, recorded: Verdict) -> bool:
    """Whether a verdict is a regression. That something was not run is judged by the runner, which knows why."""
    if Verdict.NOT_RUN in (now, recorded):
        return False
    order = list(Verdict)
    return order.index(now) > order.index(recorded)


_NUMBER = r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
_AROUND = re.compile(rf"^±\s*{_NUMBER}\s*(%?)$")
_BOUND = re.compile(rf"^(>=|<=|>|<)\s*{_NUMBER}$")
_BETWEEN = re.compile(rf"^{_NUMBER}\s*\.\.\s*{_NUMBER}$")


def _interval(bar: str, figure: Any) -> tuple[float, float, bool, bool]:
    """(low, high, low is open, high is open)"""
    text = bar.strip()
    if match := _BOUND.match(text):
        sign, number = match[1], float(match[2])
        return (number, math.inf, sign == ">", False) if sign[0] == ">" else (-math.inf, number, False, sign == "<")
    if match := _BETWEEN.match(text):
        return float(match[1]), float(match[2]), False, False
    match = _AROUND.match(text)
    if text != "equal" and not match:
        raise ValueError(f"bar {bar!r} is not one of: equal, ± 5 %, ± 0.01, >= 1.7, <= 1.4, > 1, < 1, 0.66..0.70")
    if figure is None:
        raise ValueError(f"bar {bar!r} stands around the figure, and the claim has none")
    width = 0.0 if match is None else float(match[1]) * (abs(figure) / 100 if match[2] else 1)
    return figure - width, figure + width, False, False


def _check_bar(bar: Any, figure: Any) -> None:
    if bar is None:
        return
    if isinstance(bar, Mapping):
        for name, each in bar.items():
            if isinstance(figure, Mapping) and name not in figure:
                raise ValueError(f"bar for {name!r}, which the figure does not name")
            _check_bar(each, figure.get(name) if isinstance(figure, Mapping) else figure)
    else:
        for each in figure.values() if isinstance(figure, Mapping) else [figure]:
            _interval(bar, each)


def _explain(error: ValidationError, raw: Any) -> str:
    # A misspelt field is also a missing one: name what stands in the file.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"]]
    if len(first["loc"]) > 1 and where[0] == "claims":
        claim = raw["claims"][first["loc"][1]]
        where[1] = str(claim.get("id", where[1])) if isinstance(claim, dict) else where[1]
    text = {"extra_forbidden": "unknown field; is it misspelt?", "missing": "missing"}.get(
        first["type"], first["msg"].removeprefix("Value error, ")
    )
    return f"{'.'.join(where) or 'the file'}: {text}"
