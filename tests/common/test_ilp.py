"""Integer programs: against brute force on random instances, in every solver, with a reason where there is no solution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ilp import Model, Status
from common.ilp.solvers import SOLVERS

PEERS = {"cp_sat": "ortools", "cbc": "pulp"}


def _available(solver: str) -> None:
    if solver in PEERS:
        pytest.importorskip(PEERS[solver])


small = st.integers(-4, 4)


@st.composite
def instances(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """cost, matrix, right-hand side, upper bounds of min cost x, matrix x <= side, 0 <= x <= upper, x whole."""
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    numbers = lambda count: np.array(draw(st.lists(small, min_size=count, max_size=count)))  # noqa: E731
    upper = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    return numbers(n), numbers(n * m).reshape(m, n), numbers(m), upper


def _model(cost: np.ndarray, matrix: np.ndarray, side: np.ndarray, upper: np.ndarray) -> Model:
    model = Model()
    x = model.integers("x", cost.shape, high=upper)
    for row, (weights, most) in enumerate(zip(matrix, side, strict=True)):
        model.require(f"row {row}", (x * weights).sum() <= int(most))
    model.minimise((x * cost).sum())
    return model


def _feasible(matrix: np.ndarray, side: np.ndarray, upper: np.ndarray) -> np.ndarray:
    points = np.array(list(itertools.product(*(range(each + 1) for each in upper))))
    return points[(points @ matrix.T <= side).all(axis=1)]


@settings(max_examples=120)
@given(instances())
def test_equals_brute_force(instance) -> None:
    cost, matrix, side, upper = instance
    points = _feasible(matrix, side, upper)
    solution = _model(*instance).solve()
    if len(points):
        assert solution.status is Status.OPTIMAL
        assert solution.objective == (points @ cost).min() == cost @ solution["x"]
        assert solution["x"].tolist() in points.tolist()
        assert _model(*instance).judge(solution.values) == (solution.objective, [])
        assert _model(*instance).solve(relaxed=True).objective <= solution.objective + 1e-9
        return
    assert solution.status is Status.INFEASIBLE and np.isnan(solution.objective)
    # The families that are blamed contradict each other, and without any one of them the rest does not.
    rows = [int(name.split()[1]) for name in solution.blame]
    assert rows
    assert not len(_feasible(matrix[rows], side[rows], upper))
    for row in rows:
        rest = [each for each in rows if each != row]
        assert len(_feasible(matrix[rest], side[rest], upper))


@pytest.mark.parametrize("solver", PEERS)
@settings(max_examples=25)
@given(instance=instances())
def test_a_second_solver_agrees(solver: str, instance) -> None:
    _available(solver)
    want, got = _model(*instance).solve(explain=False), _model(*instance).solve(solver=solver, explain=False)
    assert got.status is want.status
    assert got.objective == pytest.approx(want.objective, nan_ok=True)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
def test_expressions_are_arrays(seed: int, shape: tuple[int, int, int]) -> None:
    """Every operation on expressions commutes with putting numbers in for the variables."""
    rng = np.random.default_rng(seed)
    model = Model()
    x, y = model.integers("x", shape, low=-9), model.reals("y", shape[1:], low=-9)
    a, b = rng.integers(-9, 9, shape), rng.normal(size=shape[1:])
    at, weights = np.concatenate([a.ravel(), b.ravel()]), rng.normal(size=shape)

    def value(expression) -> np.ndarray:
        matrix = expression.matrix.toarray()
        return (matrix @ at[: matrix.shape[1]]).reshape(expression.shape) + expression.constant

    for got, want in (
        (weights * x + y - 2, weights * a + b - 2),
        (1 - x[0] * 3, 1 - a[0] * 3),
        ((x - y[None]).sum(axis=0), (a - b[None]).sum(axis=0)),
        (x.sum(axis=(0, -1)), a.sum(axis=(0, -1))),
        (x[:, :, None] + y, a[:, :, None] + b),
        (x[..., ::-1].sum(), a.sum()),
        (-x[[0, 0], :, -1] * np.arange(2)[:, None], -a[[0, 0], :, -1] * np.arange(2)[:, None]),
    ):
        np.testing.assert_allclose(value(got), want, atol=1e-12)


def test_products_of_binaries_as_a_placement_needs_them() -> None:
    """z = y1 and y2 by three families of inequalities: the form of an assignment that couples neighbouring layers."""
    traffic = np.array([[0.0, 5.0], [4.0, 0.0]])
    model = Model()
    first, second, both = model.binaries("first", (2, 2)), model.binaries("second", (2, 2)), model.binaries("both", (2, 2, 2, 2))
    for name, place in (("first", first), ("second", second)):
        model.require(f"{name} is a bijection", place.sum(axis=0) == 1)
        model.require(f"{name} is a bijection", place.sum(axis=1) == 1)
    model.require("product", both <= first[:, :, None, None])
    model.require("product", both <= second[None, None])
    model.require("product", both >= first[:, :, None, None] + second[None, None] - 1)
    crossing = 1 - np.eye(2)
    model.minimise((both * traffic[:, None, :, None] * crossing[None, :, None, :]).sum())
    solution = model.solve()
    assert solution.objective == 0
    np.testing.assert_array_equal(solution["first"], solution["second"][::-1])


def test_time_and_gap_are_reported_as_not_proven() -> None:
    rng = np.random.default_rng(0)
    model = Model()
    x = model.binaries("x", (60, 10))
    weight = rng.integers(20, 100, 60)
    model.require("once", x.sum(axis=1) == 1)
    worst = model.reals("worst", ())
    model.require("load", (x * weight[:, None]).sum(axis=0) <= worst)
    model.minimise(worst * 1.0)
    rough = model.solve(gap=0.2)
    assert rough.status in (Status.FEASIBLE, Status.OPTIMAL) and rough.gap <= 0.2
    assert rough.bound <= rough.objective
    if rough.status is Status.FEASIBLE:
        assert "not proven" in str(rough) and "bound" in str(rough)
    short = model.solve(time_limit=1e-3)
    assert short.status in (Status.UNKNOWN, Status.FEASIBLE) and "not proven" in str(short)
    with pytest.raises(ValueError, match="no solution to take 'x'"):
        model.solve(time_limit=1e-9)["x"]


def test_blame_names_the_families() -> None:
    model = Model()
    x = model.integers("x", (3,), high=4)
    model.require("demand", x.sum() >= 9)
    model.require("innocent", x[0] <= 3)
    model.require("budget", (x * np.array([1.0, 2.0, 3.0])).sum() <= 5)
    model.minimise(x.sum())
    solution = model.solve()
    assert solution.blame == ("demand", "budget")
    assert str(solution) == "infeasible: 'demand' and 'budget' cannot hold together"
    assert model.judge({"x": [4, 4, 4]}) == (12.0, ["innocent", "budget"])
    assert model.judge({"x": [5, 0.5, 0]})[1] == ["x", "demand", "innocent", "budget"]
    alone = Model()
    alone.require("too much", alone.integers("y", (2,), high=1).sum() >= 3)
    assert str(alone.solve()) == "infeasible: 'too much' cannot hold"


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_least_objective(solver: str) -> None:
    _available(solver)
    model = Model()
    x = model.integers("x", (2,))
    model.require("difference", x[0] - x[1] == 0)
    model.minimise(-x.sum())
    if solver == "cp_sat":  # it has no infinite bounds: they are 2^31
        assert model.solve(solver=solver).objective == -(2.0**32)
    else:
        assert model.solve(solver=solver).status is Status.UNBOUNDED


def test_real_variables_and_constants() -> None:
    model = Model()
    x = model.reals("x", (), low=0.25)
    model.minimise(x * 2 + 1)
    assert model.solve().objective == pytest.approx(1.5)
    pytest.importorskip("ortools")
    with pytest.raises(ValueError, match="whole numbers only"):
        model.solve(solver="cp_sat")


def test_bad_input_is_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match="no variables"):
        model.solve()
    x = model.integers("x", (2,))
    with pytest.raises(ValueError, match="two families of variables called 'x'"):
        model.binaries("x", (2,))
    with pytest.raises(ValueError, match="lower bound is above"):
        model.integers("y", (2,), low=3, high=2)
    with pytest.raises(ValueError, match="single expression"):
        model.minimise(x)
    with pytest.raises(TypeError, match="two expressions cannot be multiplied"):
        x * x
    with pytest.raises(TypeError, match="family"):
        model.require("family", x.sum())
    with pytest.raises(ValueError, match="wanted one of highs, cp_sat, cbc"):
        model.solve(solver="gurobi")
    with pytest.raises(ValueError, match="time above 0"):
        model.solve(time_limit=0)


@pytest.mark.parametrize("solver", ["highs", "cp_sat", "cbc"])
def test_whole_rows_of_very_different_coefficients_are_exact(solver):
    if solver in PEERS:
        pytest.importorskip(PEERS[solver])
    # The sum in excess of a share, as for loads in tokens: u - 7 x >= -100,003, where x weighs up to 300,000.
    model = Model()
    x, u = model.binaries("x", (3,)), model.integers("u", (), high=10**6)
    loads = np.array([300_000, 123_457, 50_021])
    model.require("one of each", x.sum() == 2)
    model.require("excess", u >= (x * loads).sum() - 100_003)
    model.minimise(u + 0.0)
    solution = model.solve(solver=solver)
    assert (solution.objective, solution["u"].tolist(), solution["x"].tolist()) == (73_475.0, 73_475, [0, 1, 1])


def test_the_sum_of_nothing_is_zero():
    model = Model()
    none = model.integers("none", (0, 3), high=1)
    assert none.sum(axis=1).shape == (0,)
    total = none.sum()
    assert total.shape == ()
    assert float(total.constant) == 0
