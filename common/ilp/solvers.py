"""The solvers behind a model: HiGHS always, CP-SAT and CBC where they are installed."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array

from common import UserError

TOLERANCE = 1e-6
"""By which a row may miss its bound, absolute: HiGHS's own."""


@dataclass(frozen=True)
class Program:
    """min cost x, low <= matrix x <= high, lower <= x <= upper, x whole where ``integer``."""

    cost: Float[np.ndarray, " variables"]
    matrix: csr_array
    low: Float[np.ndarray, " rows"]
    high: Float[np.ndarray, " rows"]
    lower: Float[np.ndarray, " variables"]
    upper: Float[np.ndarray, " variables"]
    integer: Bool[np.ndarray, " variables"]


@dataclass(frozen=True)
class Found:
    """What a solver says: an assignment or none, the bound on the objective, and whether there can be none or no least."""

    x: Float[np.ndarray, " variables"] | None
    bound: float = -math.inf
    infeasible: bool = False
    unbounded: bool = False


def highs(program: Program, time_limit: float, gap: float) -> Found:
    from scipy.optimize import Bounds, LinearConstraint, milp

    p = program
    rows = [LinearConstraint(p.matrix, p.low, p.high)] if p.matrix.shape[0] else []
    options = {"time_limit": time_limit, "mip_rel_gap": gap}
    with _silent():
        done = milp(p.cost, constraints=rows, bounds=Bounds(p.lower, p.upper), integrality=p.integer.astype(int), options=options)
    if done.status == 4 and p.cost.any():
        # "Infeasible or unbounded": presolve did not look which; without a cost nothing is unbounded.
        free = Program(0 * p.cost, p.matrix, p.low, p.high, p.lower, p.upper, p.integer)
        infeasible = highs(free, time_limit, gap).infeasible
        return Found(None, infeasible=infeasible, unbounded=not infeasible)
    bound = done.get("mip_dual_bound")
    bound = bound if bound is not None else done.fun if done.status == 0 else None
    return Found(done.x, -math.inf if bound is None else float(bound), done.status == 2, done.status == 3)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what HiGHS prints of its own, past Python's streams, whatever its options say."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def cp_sat(program: Program, time_limit: float, gap: float) -> Found:
    """Whole variables only. Rows that are not whole become numbers of 30 bits, all bounds are widened by the tolerance of HiGHS."""
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise UserError("solver cp_sat needs OR-Tools; pip install ortools, or take solver='highs'") from error
    p = program
    if not p.integer.all():
        raise ValueError("cp_sat: a variable is real; CP-SAT has whole numbers only: take solver='highs' or 'cbc'")
    model, far = cp_model.CpModel(), 2**31
    lower, upper = np.ceil(np.maximum(p.lower, -far)), np.floor(np.minimum(p.upper, far))
    if (lower > upper).any():
        return Found(None, infeasible=True)
    x = [model.NewIntVar(int(a), int(b), f"x{i}") for i, (a, b) in enumerate(zip(lower, upper, strict=True))]
    for row, (low, high) in enumerate(zip(p.low, p.high, strict=True)):
        part = slice(*p.matrix.indptr[row : row + 2])
        data, ends = p.matrix.data[part], np.array([low - TOLERANCE, high + TOLERANCE])
        # Whole rows are exact as they are; a bound then means the next whole number inside it.
        if (data == np.round(data)).all() and np.abs(data).max(initial=0.0) < 2**30:
            ends[0], ends[1] = np.ceil(ends[0]), np.floor(ends[1])
        else:
            scale = 2.0**30 / max(np.abs(data).max(), 1.0)
            data, ends = np.round(data * scale), ends * scale
        total: Any = cp_model.LinearExpr.WeightedSum([x[i] for i in p.matrix.indices[part]], data.astype(int).tolist())
        model.AddLinearConstraint(total, *(int(end) for end in np.clip(ends, -(2.0**61), 2.0**61)))
    model.Minimize(sum(float(c) * each for c, each in zip(p.cost, x, strict=True) if c))
    solver = cp_model.CpSolver()
    solver.parameters.relative_gap_limit, solver.parameters.num_workers = gap, 1
    if math.isfinite(time_limit):
        solver.parameters.max_time_in_seconds = time_limit
    status = solver.Solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Found(np.array([solver.Value(each) for each in x], float), float(solver.BestObjectiveBound()))
    return Found(None, infeasible=status == cp_model.INFEASIBLE)


def cbc(program: Program, time_limit: float, gap: float) -> Found:
    """CBC by way of PuLP, which does not hand out the bound of a search that was stopped."""
    try:
        import pulp
    except ImportError as error:
        raise UserError("solver cbc needs PuLP; pip install pulp, or take solver='highs'") from error
    p = program
    problem = pulp.LpProblem("model", pulp.LpMinimize)
    kinds = {True: pulp.LpInteger, False: pulp.LpContinuous}
    x = [
        pulp.LpVariable(f"x{i}", _end(a), _end(b), kinds[bool(whole)])
        for i, (a, b, whole) in enumerate(zip(p.lower, p.upper, p.integer, strict=True))
    ]
    problem += pulp.LpAffineExpression(list(zip(x, p.cost.tolist(), strict=True)))
    for row, (low, high) in enumerate(zip(p.low, p.high, strict=True)):
        part = slice(*p.matrix.indptr[row : row + 2])
        total = pulp.LpAffineExpression(
            [(x[i], float(a)) for i, a in zip(p.matrix.indices[part], p.matrix.data[part], strict=True)]
        )
        if low == high:
            problem += total == float(low)
            continue
        for end, sense in ((low, pulp.LpConstraintGE), (high, pulp.LpConstraintLE)):
            if math.isfinite(end):
                problem += pulp.LpConstraint(total, sense=sense, rhs=float(end))
    limit = time_limit if math.isfinite(time_limit) else None
    problem.solve(pulp.PULP_CBC_CMD(msg=0, timeLimit=limit, gapRel=gap, threads=1))
    if problem.status == pulp.LpStatusInfeasible or problem.status == pulp.LpStatusUnbounded:
        return Found(
            None, infeasible=problem.status == pulp.LpStatusInfeasible, unbounded=problem.status == pulp.LpStatusUnbounded
        )
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Found(None)
    values = np.array([each.value() or 0.0 for each in x])
    return Found(values, float(p.cost @ values) if problem.sol_status == pulp.LpSolutionOptimal and gap == 0 else -math.inf)


def _end(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


SOLVERS: dict[str, Callable[[Program, float, float], Found]] = {"highs": highs, "cp_sat": cp_sat, "cbc": cbc}
