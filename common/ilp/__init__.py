"""Integer programs over named arrays of variables and named families of constraints, solved by HiGHS or a second solver.

    model = Model()
    slices = model.integers("slices", (60, 4), high=8)         # of each bucket, on each type of GPU
    fleet = model.integers("fleet", (4,))
    model.require("every slice is served", slices.sum(axis=1) == 8)
    model.require("a GPU holds a load of one", (slices * load).sum(axis=0) <= fleet)
    model.minimise((fleet * price).sum())
    solution = model.solve(time_limit=10)
    solution.status, solution["fleet"], solution.bound

A model that cannot be solved says which families of constraints contradict each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from .expressions import Constraint, Expression, Variables, stack, widen
from .solvers import SOLVERS, TOLERANCE, Found, Program

__all__ = ["Constraint", "Expression", "Model", "Solution", "Status", "Variables"]


class Status(StrEnum):
    OPTIMAL = "optimal"
    FEASIBLE = "feasible, not proven"  # the time was up, or the gap that was asked for is reached
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    UNKNOWN = "no solution found, not proven"  # the time was up


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        objective: of the values; NaN where there are none.
        bound: no solution can be below it; -inf where the solver tells none.
        values: the array of each family of variables, exact whole numbers where they are whole.
        blame: of an infeasible model, families of constraints that contradict each other while any of them left out makes
            the rest solvable; they were found by leaving out one after another.
        seconds: of the search, the building of the model not counted.
    """

    status: Status
    objective: float
    bound: float
    values: Mapping[str, np.ndarray]
    blame: tuple[str, ...]
    seconds: float

    def __getitem__(self, family: str) -> np.ndarray:
        if not self.values:
            raise ValueError(f"there is no solution to take {family!r} from: {self}")
        return self.values[family]

    @property
    def gap(self) -> float:
        """(objective - bound) / |objective|; 0 when the solution is proven to be the best."""
        if self.status is Status.OPTIMAL:
            return 0.0
        return (self.objective - self.bound) / max(abs(self.objective), 1e-12)

    def __str__(self) -> str:
        if self.status is Status.INFEASIBLE:
            named = " and ".join(repr(each) for each in self.blame) or "the bounds of the variables"
            return f"infeasible: {named} cannot {'hold together' if len(self.blame) > 1 else 'hold'}"
        if self.status is Status.FEASIBLE:
            return f"feasible, not proven: {self.objective:g}, bound {self.bound:g} (gap {self.gap:.2%})"
        return f"optimal: {self.objective:g}" if self.status is Status.OPTIMAL else str(self.status)


@dataclass
class Model:
    """A linear objective and linear constraints; see the module's text."""

    variables: dict[str, Variables] = field(default_factory=dict)
    constraints: dict[str, list[Constraint]] = field(default_factory=dict)
    objective: Expression | None = None

    def integers(self, name: str, shape: tuple[int, ...], low: Any = 0.0, high: Any = math.inf) -> Variables:
        """Whole numbers; the bounds broadcast to the shape."""
        return self._family(name, shape, low, high, integer=True)

    def binaries(self, name: str, shape: tuple[int, ...]) -> Variables:
        """Each 0 or 1."""
        return self._family(name, shape, 0.0, 1.0, integer=True)

    def reals(self, name: str, shape: tuple[int, ...], low: Any = 0.0, high: Any = math.inf) -> Variables:
        return self._family(name, shape, low, high, integer=False)

    def require(self, family: str, constraint: Constraint) -> None:
        """Every element of the constraint must hold. Constraints of one family are blamed together."""
        if not isinstance(constraint, Constraint):
            raise TypeError(f"{family!r} is {constraint!r}; wanted a comparison of expressions, such as x.sum() <= 3")
        self.constraints.setdefault(family, []).append(constraint)

    def minimise(self, objective: Expression) -> None:
        if objective.shape:
            raise ValueError(f"the objective has shape {objective.shape}; wanted a single expression: end it with .sum()")
        self.objective = objective

    def solve(
        self,
        *,
        time_limit: int | float = math.inf,
        gap: int | float = 0.0,
        solver: str = "highs",
        relaxed: bool = False,
        explain: bool = True,
    ) -> Solution:
        """Search for the least objective.

        Args:
            time_limit: seconds; what was found until then comes back as "feasible, not proven".
            gap: the search may end this close to the bound, relative to the objective.
            solver: "highs", or where they are installed "cp_sat" (OR-Tools; whole variables only) and "cbc" (PuLP).
            relaxed: drop the demand for whole numbers; the result is a lower bound.
            explain: look for the families to blame if there is no solution, one search for each family.

        Raises:
            ValueError: no variables, an unknown solver, a negative gap or time.
            UserError: the solver is not installed.
        """
        if solver not in SOLVERS:
            raise ValueError(f"solver is {solver!r}; wanted one of {', '.join(SOLVERS)}")
        if not time_limit > 0 or gap < 0:
            raise ValueError(f"time_limit is {time_limit} and gap {gap}; wanted a time above 0 and a gap of at least 0")
        program, start = self._program(list(self.constraints), relaxed), time.perf_counter()
        found = SOLVERS[solver](program, time_limit, gap)
        seconds = time.perf_counter() - start
        if found.x is not None:
            return self._solution(found, program, seconds)
        status = Status.INFEASIBLE if found.infeasible else Status.UNBOUNDED if found.unbounded else Status.UNKNOWN
        blame = self._blame(time_limit, relaxed) if found.infeasible and explain else ()
        return Solution(status, math.nan, found.bound, {}, blame, seconds)

    def judge(self, values: Mapping[str, Any]) -> tuple[float, list[str]]:
        """The objective of an assignment, say a heuristic's, and what it violates: families of constraints and of variables."""
        x = np.concatenate([np.broadcast_to(values[name], v.shape).ravel() for name, v in self.variables.items()]).astype(float)
        program = self._program(list(self.constraints), relaxed=False)
        row_of = np.repeat(list(self.constraints), [self._rows(name) for name in self.constraints])
        total = program.matrix @ x
        broken = set(row_of[(total < program.low - TOLERANCE) | (total > program.high + TOLERANCE)])
        out = (x < program.lower - TOLERANCE) | (x > program.upper + TOLERANCE) | (program.integer & (x != np.round(x)))
        broken |= {name for name, v in self.variables.items() if out[v.start : v.start + v.constant.size].any()}
        return float(program.cost @ x) + self._offset, [name for name in (*self.variables, *self.constraints) if name in broken]

    def _family(self, name: str, shape: tuple[int, ...], low: Any, high: Any, integer: bool) -> Variables:
        if name in self.variables:
            raise ValueError(f"there are two families of variables called {name!r}; give one another name")
        self.variables[name] = Variables(name, shape, self._columns, low, high, integer)
        return self.variables[name]

    @property
    def _columns(self) -> int:
        return sum(each.constant.size for each in self.variables.values())

    @property
    def _offset(self) -> float:
        return 0.0 if self.objective is None else float(self.objective.constant)

    def _rows(self, family: str) -> int:
        return sum(each.expression.constant.size for each in self.constraints[family])

    def _program(self, families: list[str], relaxed: bool) -> Program:
        if not self.variables:
            raise ValueError("the model has no variables; add some by integers, binaries or reals")
        columns, kept = self._columns, [each for name in families for each in self.constraints[name]]
        flat = [each.expression.constant.ravel() for each in kept]
        join = np.concatenate
        cost = np.zeros(columns) if self.objective is None else widen(self.objective.matrix, columns).toarray()[0]
        v = self.variables.values()
        return Program(
            cost,
            stack([each.expression.matrix for each in kept], columns),
            join([each.low - part for each, part in zip(kept, flat, strict=True)] or [np.zeros(0)]),
            join([each.high - part for each, part in zip(kept, flat, strict=True)] or [np.zeros(0)]),
            join([each.low.ravel() for each in v]),
            join([each.high.ravel() for each in v]),
            join([np.full(each.constant.size, each.integer and not relaxed) for each in v]),
        )

    def _solution(self, found: Found, program: Program, seconds: float) -> Solution:
        assert found.x is not None
        x = np.where(program.integer, np.round(found.x), found.x)
        values = {name: x[v.start : v.start + v.constant.size].reshape(v.shape) for name, v in self.variables.items()}
        values = {
            name: each.astype(int) if self.variables[name].integer and program.integer.any() else each
            for name, each in values.items()
        }
        objective = float(program.cost @ x) + self._offset
        bound = min(found.bound + self._offset, objective)
        proven = objective - bound <= 1e-9 * max(1.0, abs(objective))
        return Solution(Status.OPTIMAL if proven else Status.FEASIBLE, objective, bound, values, (), seconds)

    def _blame(self, time_limit: float, relaxed: bool) -> tuple[str, ...]:
        """Leave out one family after another, for good where the rest stays infeasible: what remains is irreducible."""
        kept = list(self.constraints)
        for name in list(kept):
            rest = [each for each in kept if each != name]
            program = self._program(rest, relaxed)
            without_cost = Program(
                0 * program.cost, program.matrix, program.low, program.high, program.lower, program.upper, program.integer
            )
            if SOLVERS["highs"](without_cost, time_limit, 0.0).infeasible:
                kept = rest
        return tuple(kept)
