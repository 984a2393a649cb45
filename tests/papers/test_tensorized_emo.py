"""Operators, problems and the three algorithms: peers, sequential originals, brute force, and every bad input."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

from common.command_line import main
from common.runner import Run
from papers.tensorized_emo import checks, metrics, niche_table, policies, quality, robots, sequential, speed, tensor_torch
from papers.tensorized_emo.config import PRESETS, Framework
from papers.tensorized_emo.operators import polynomial_mutation, reference_points, simulated_binary
from papers.tensorized_emo.problems import Problem, dtlz, front, on_grid
from papers.tensorized_emo.settings import WORST, Setting, State, aggregate

pytestmark = pytest.mark.xdist_group("tensorized_emo")

seeds = st.integers(0, 2**31).map(np.random.default_rng)


@given(seeds)
@settings(max_examples=60)
def test_survivors_are_those_of_the_loop_and_of_the_table(rng) -> None:
    f, n, references = checks.merged_set(rng)
    tensors = torch.from_numpy(f), n, torch.from_numpy(references)
    found = tensor_torch.survivors(*tensors)
    assert int(found.sum()) == n
    np.testing.assert_array_equal(found, sequential.niching(f, n, references))
    np.testing.assert_array_equal(found, niche_table.survivors(*tensors))


@pytest.mark.parametrize("algorithm", ["nsga2", "nsga3", "hype"])
def test_torch_repeats_the_loop(algorithm) -> None:
    """An odd population too, whose last parent has no partner."""
    setting = Setting(algorithm, on_grid(dtlz(2)), 33, samples=200)
    rng = np.random.default_rng(0)
    a = setting.start(rng)
    b = State(*map(torch.from_numpy, a))
    one, other = sequential.step(setting), tensor_torch.step(setting)
    for _ in range(8):
        noise = setting.draw(rng)
        a, b = one(a, noise), other(b, {name: torch.from_numpy(each) for name, each in noise.items()})
    np.testing.assert_allclose(b.x.numpy(), a.x, atol=1e-12)
    np.testing.assert_array_equal(b.f.numpy(), a.f)


def broken(problem: Problem) -> Problem:
    """The problem with a region where nothing can be evaluated."""

    def evaluate(x):
        xp = array_namespace(x)
        f = problem.evaluate(x)
        return xp.where(x[:, :1] > 0.7, xp.full_like(f, float("nan")), f)

    return dataclasses.replace(problem, evaluate=evaluate)


@pytest.mark.parametrize("algorithm", ["nsga2", "nsga3", "hype", "moead"])
@pytest.mark.filterwarnings("ignore:.*no numbers")
def test_what_is_no_number_never_wins(algorithm) -> None:
    """A NaN is incomparable and must not be taken for undominated; the loop and the tensor form still agree."""
    setting = Setting(algorithm, on_grid(broken(dtlz(2))), 36, samples=200)
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="no numbers; these rows are ranked last"):
        a = setting.start(rng)
    b = State(*map(torch.from_numpy, a))
    assert 5 < (a.f == WORST).all(axis=1).sum() < 18 and np.isfinite(a.point).all()
    one, other = sequential.step(setting), tensor_torch.step(setting)
    for _ in range(6):
        noise = setting.draw(rng)
        a, b = one(a, noise), other(b, {name: torch.from_numpy(each) for name, each in noise.items()})
    assert (b.f < WORST).all() and (a.f < WORST).all() and torch.isfinite(b.point).all()
    if algorithm != "moead":
        np.testing.assert_array_equal(b.f.numpy(), a.f)


def test_more_broken_rows_than_places() -> None:
    """Whole fronts of numbers survive, and the rest is filled up."""
    f = np.concatenate([np.random.default_rng(0).random((9, 3)), np.full((31, 3), WORST)])[
        np.random.default_rng(1).permutation(40)
    ]
    references = reference_points(20, 3)
    found = tensor_torch.survivors(torch.from_numpy(f), 20, torch.from_numpy(references)).numpy()
    assert found.sum() == 20 and found[f[:, 0] < WORST].all()
    np.testing.assert_array_equal(found, sequential.niching(f, 20, references))


@pytest.mark.filterwarnings("ignore:.*no numbers")
def test_jax_repeats_torch_in_nsga2_too() -> None:
    """The three of the paper are compared by the claim same_populations; here also with rows that are no numbers."""
    import jax
    import jax.numpy as jnp

    from papers.tensorized_emo import tensor_jax

    setting = Setting("nsga2", on_grid(broken(dtlz(2))), 15)
    rng = np.random.default_rng(0)
    first = setting.start(rng)
    with jax.enable_x64(True):
        a, b = State(*map(torch.from_numpy, first)), State(*map(jnp.asarray, first))
        one, other = tensor_torch.step(setting), tensor_jax.step(setting)
        for _ in range(5):
            noise = setting.draw(rng)
            a = one(a, {name: torch.from_numpy(each) for name, each in noise.items()})
            b = other(b, {name: jnp.asarray(each) for name, each in noise.items()})
            np.testing.assert_array_equal(np.asarray(b.f), a.f.numpy())


@given(st.sampled_from(["pbi", "tchebycheff", "weighted_sum"]), seeds)
def test_aggregations_are_their_formulas(name, rng) -> None:
    setting = Setting("moead", dtlz(2), 15, aggregation=name)
    f, w = rng.random(3), setting.references[rng.integers(15)]
    along = f @ w / np.linalg.norm(w)
    want = {
        "pbi": along + 5 * np.linalg.norm(f - along * w / np.linalg.norm(w)),
        "tchebycheff": (f * w).max(),
        "weighted_sum": f @ w,
    }
    row = setting.weights[(setting.references == w).all(axis=1)][0]
    assert aggregate(name, f[:, None], row[:, None])[0] == pytest.approx(want[name], rel=1e-12)


def test_worse_than_a_library_is_seen(tmp_path) -> None:
    config = dataclasses.replace(PRESETS["smoke"], peer_problems=[1, 2], quality_problems=[1, 2])

    def fronts(number, off):
        return [front(number, 91) + off + 0.01 * np.random.default_rng(seed).random((91, 3)) for seed in range(4)]

    found = {
        (algorithm, number, method): fronts(number, 0.2 if (algorithm, method, number) == ("hype", "tensor", 2) else 0)
        for algorithm in ("nsga3", "moead", "hype")
        for number in (1, 2)
        for method in ("tensor", "pymoo", "EvoX")
    }
    run = Run("tensorized_emo", tmp_path, "key", quiet=True)
    value = quality.against_peers(config, run, found)
    assert value["HypE, EvoX"] == pytest.approx(4 / 70)  # the least p of four against four, and four tests
    assert value["NSGA-III, pymoo"] == value["NSGA-III, EvoX"] == value["MOEA/D, pymoo"] == 1
    loops = {**found, **{(a, n, "loop"): found[a, n, "pymoo"] for a in ("nsga3", "moead", "hype") for n in (1, 2)}}
    values = quality.against_loops(config, run, loops)
    assert values["quality"]["HypE"] > 1.5 > 1.1 > values["quality"]["NSGA-III"]
    assert values["quality_test"]["HypE"] == pytest.approx(2 / 70)


def test_ratios_of_times_are_between_sizes_that_both_have(tmp_path, monkeypatch) -> None:
    config = dataclasses.replace(PRESETS["laptop"], framework=Framework.torch)

    def times(config, run, settings, forms):
        """Libraries take n^2, tensor forms n, loops 3 n."""
        size = settings["hype"].size
        found = {f"{name}, PyTorch": size for name in checks.NAMES.values()} | {"NSGA-III, pymoo": 0.01 * size**2}
        if size <= 1035:
            found |= {"NSGA-III, EvoX": 0.02 * size**2, "HypE, EvoX": 0.03 * size**2}
            found |= {"MOEA/D, pymoo": 0.04 * size**2, "MOEA/D, EvoX": 0.05 * size**2}
            found |= {f"{name}, loop": 3 * size for name in checks.NAMES.values()}
        return found

    monkeypatch.setattr(speed, "by_library", times)
    monkeypatch.setattr(speed, "tensors", lambda config, setting: {})
    run = Run("tensorized_emo", tmp_path, "key", only=frozenset({"growth"}), quiet=True)
    values = speed.libraries(config, run)
    assert values["vs_pymoo"] == pytest.approx(
        {"NSGA-III": 10.35, "MOEA/D": 41.4, "NSGA-III, PyTorch": 10.35, "MOEA/D, PyTorch": 41.4}
    )
    assert values["vs_evox"]["HypE, PyTorch"] == pytest.approx(31.05)
    assert values["growth"]["NSGA-III over pymoo"] == pytest.approx(10_011 / 105)
    assert values["growth"]["MOEA/D over pymoo"] == pytest.approx(1035 / 105)
    assert values["fair_baseline"] == pytest.approx({"MOEA/D": 0.04 * 1035 / 3, "NSGA-III": 0.01 * 1035 / 3})
    assert list(run.details["libraries, ratios"]["NSGA-III, PyTorch over EvoX"]) == ["105", "1035"]


def test_random_search_never_gets_worse() -> None:
    setting = Setting("nsga3", robots.robot("integrator", 5), 8)
    best, curve = policies.random_search(setting, 0, 4)
    assert len(curve) == 5 and (np.diff(curve) >= 0).all() and metrics.first_front(best).all()


@given(seeds)
def test_every_slot_of_moead_takes_the_best_child_that_wants_it(rng) -> None:
    """Against the paper's form: a matrix of children and slots, read by its transpose."""
    import jax.numpy as jnp

    from papers.tensorized_emo import tensor_jax

    n, t = 20, 4
    neighbours = np.stack([rng.permutation(n)[:t] for _ in range(n)])
    old, new = rng.integers(0, 5, n).astype(float), rng.integers(0, 5, (n, t)).astype(float)
    wants = np.full((n, n), np.inf)
    for child, slot in np.ndindex(n, t):
        if new[child, slot] < old[neighbours[child, slot]]:
            wants[child, neighbours[child, slot]] = new[child, slot]
    want = np.where(np.isfinite(wants).any(axis=0), wants.argmin(axis=0), n)
    found = tensor_torch._best_child(*(torch.from_numpy(each) for each in (neighbours, old, new)))
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(tensor_jax._best_child(*map(jnp.asarray, (neighbours, old, new))), want)


def test_moead_only_improves_what_a_slot_is_for() -> None:
    setting = Setting("moead", dtlz(1), 91)
    generator = torch.Generator().manual_seed(0)
    state = State(*(torch.from_numpy(each).float() for each in setting.start(np.random.default_rng(0))))
    advance, w = tensor_torch.step(setting), torch.from_numpy(setting.weights).float()
    for _ in range(5):
        after = advance(state, tensor_torch.draw(setting, generator))
        before, now = (aggregate("pbi", (f - after.point).mT, w.mT) for f in (state.f, after.f))
        assert (now <= before * (1 + 1e-5)).all() and (after.point <= state.point).all()
        state = after


@pytest.mark.parametrize("number", range(1, 8))
def test_problems_are_those_of_a_peer(number) -> None:
    pytest.importorskip("pymoo")
    from pymoo.problems import get_problem

    problem = dtlz(number)
    x = np.random.default_rng(0).random((30, problem.d))
    x[:4, :2] = [[0, 0], [0, 1], [1, 0], [1, 1]]
    want = get_problem(f"dtlz{number}", n_var=problem.d, n_obj=3).evaluate(x)
    np.testing.assert_allclose(problem.evaluate(x), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(problem.evaluate(torch.from_numpy(x)).numpy(), want, rtol=1e-12, atol=1e-12)


def test_no_objective_is_below_zero_in_float32() -> None:
    """The cosine of a right angle is, and a far point would win by it."""
    x = torch.rand(50, 12)
    x[:, :2] = 1
    for number in (2, 3, 4):
        assert (dtlz(number).evaluate(x) >= 0).all()


def test_fronts_lie_on_their_problem() -> None:
    for number in (1, 2, 3, 4):
        f = front(number, 300)
        total = f.sum(axis=1) - 0.5 if number == 1 else np.linalg.norm(f, axis=1) - 1
        np.testing.assert_allclose(total, 0, atol=1e-12)
        assert (f >= 0).all()


@pytest.mark.parametrize(("n", "m"), [(91, 3), (100, 3), (16, 2), (35, 4), (210, 5)])
def test_reference_points_are_das_and_dennis(n, m) -> None:
    found = reference_points(n, m)
    assert len(found) <= n and len(np.unique(found.round(9), axis=0)) == len(found)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found > 0).all()
    pytest.importorskip("pymoo")
    from pymoo.util.ref_dirs import get_reference_directions

    h = next(h for h in range(99) if math.comb(h + m, m - 1) > n)
    want = get_reference_directions("das-dennis", m, n_partitions=h)
    layer = found if h >= m else found[: len(want)]
    np.testing.assert_allclose(np.sort(layer.round(4), axis=0), np.sort(np.maximum(want, 1e-6).round(4), axis=0), atol=1e-9)


def test_inner_layer_of_many_objectives() -> None:
    found = reference_points(156, 8)  # 120 of H = 3, and 36 of H = 2 inside
    assert len(found) == 156
    assert (found[120:] >= 1 / 16 - 1e-9).all() and (found[120:].sum(axis=1) - 1 < 1e-9).all()


@given(seeds, st.integers(1, 9), st.integers(1, 6))
def test_crossover_keeps_the_mean_and_mutation_the_bounds(rng, n, d) -> None:
    parents = rng.random((n, d))
    children = simulated_binary(parents, rng.random((n // 2, d)))
    assert children.shape == parents.shape
    np.testing.assert_allclose(children.mean(axis=0), parents.mean(axis=0), atol=1e-12)
    if n % 2:
        np.testing.assert_array_equal(children[-1], parents[-1])
    half = simulated_binary(parents, rng.random((n // 2, d)), half=True)
    assert half.shape == (n // 2, d)
    lower, upper = np.full(d, 0.2), np.full(d, 0.7)
    moved = polynomial_mutation(children, rng.random((n, d)), lower, upper)
    assert (moved >= lower).all() and (moved <= upper).all()


def test_operators_follow_their_distributions() -> None:
    rng = np.random.default_rng(0)
    n, d = 4000, 50
    spread = simulated_binary(np.stack([np.ones(n * d), -np.ones(n * d)]).reshape(2, -1), rng.random((1, n * d)), half=True)[0]
    # Half of the genes stay, the others are +-beta; half of |beta| lie below 1, and P(|beta| <= b) = b^21 / 2 there.
    assert (spread == 1).mean() == pytest.approx(0.5, abs=0.01)
    beta = np.abs(spread[spread != 1])
    assert (beta < 1).mean() == pytest.approx(0.5, abs=0.01) and (beta < 0.95).mean() == pytest.approx(0.95**21 / 2, abs=0.01)
    assert (spread < 0).mean() == pytest.approx(0.25, abs=0.01)
    x = np.full((n, d), 0.5)
    moved = polynomial_mutation(x, rng.random((n, d)), np.zeros(d), np.ones(d))
    assert (moved != x).sum(axis=1).mean() == pytest.approx(1, abs=0.05)
    step = moved[moved != x] - 0.5
    # In the middle of wide bounds P(|delta| > a) = (1 - a)^21.
    assert (np.abs(step) > 0.05).mean() == pytest.approx(0.95**21, abs=0.02) and abs(step.mean()) < 0.005


def test_hype_weights_and_shares_against_enumeration() -> None:
    assert checks.alpha() <= 1e-12
    points, corner = np.random.default_rng(1).random((5, 3)), np.full(3, 1.1)
    rng = np.random.default_rng(2)
    u = rng.random((20_000, 3))
    found = tensor_torch.shares(*(torch.from_numpy(each) for each in (points, corner, u)), 2, 5).numpy()
    np.testing.assert_allclose(found, sequential.shares(points, corner, u, 2), rtol=1e-12)
    np.testing.assert_allclose(found, checks.exact_shares(points, corner, 2), rtol=0.1, atol=0.005)
    # When one goes, what is lost is the volume that it alone dominates.
    alone = [metrics.hypervolume(points, corner) - metrics.hypervolume(np.delete(points, i, axis=0), corner) for i in range(5)]
    np.testing.assert_allclose(checks.exact_shares(points, corner, 1), alone, atol=1e-9)


def test_metrics() -> None:
    pytest.importorskip("pymoo")
    from pymoo.indicators.igd import IGD

    f, true = np.random.default_rng(0).random((40, 3)), front(2, 200)
    assert metrics.igd(f, true) == pytest.approx(IGD(true)(f))
    u = np.random.default_rng(1).random((60_000, 3))
    corner = np.full(3, 1.2)
    assert metrics.sampled_hypervolume(f, corner, u) == pytest.approx(metrics.hypervolume(f, corner), rel=0.02)
    assert metrics.expected_utility(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])) == 0
    assert metrics.p_worse([2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 1.5, 1.7]) < 0.05 < metrics.p_worse([0.0, 1.0, 1.5], [2.0, 3.0, 4.0])


def test_a_robot_moves_alike_in_both_frameworks() -> None:
    import jax
    import jax.numpy as jnp

    for name in ("reacher", "integrator"):
        problem = robots.robot(name, 20)
        x = np.random.default_rng(0).uniform(-1, 1, (6, problem.d))
        f, behaviour = robots.episode(name, torch.from_numpy(x), 20)
        with jax.enable_x64(True):
            g, other = robots.episode(name, jnp.asarray(x), 20)
        np.testing.assert_allclose(robots.episode(name, x, 20)[0], f.numpy(), rtol=1e-9)
        np.testing.assert_allclose(f.numpy(), np.asarray(g), rtol=1e-9)
        np.testing.assert_allclose(behaviour.numpy(), np.asarray(other), rtol=1e-9, atol=1e-9)
        # Without weights nothing pushes, and nothing moves that lay still.
        still, _ = robots.episode(name, torch.zeros(1, problem.d, dtype=torch.float64), 20)
        assert float(still[0, 1]) == 0
    assert robots.distinct(np.array([[0.0], [0.01], [1.0]])) == 2


def test_arm_keeps_its_energy_without_torque_and_damping(monkeypatch) -> None:
    """The equations of motion against the energy of two rods, as an independent check."""
    monkeypatch.setattr(robots, "STEP", 1e-4)
    state = tuple(np.full((1, 1), value) for value in (0.2, 0.9, 0.7, -0.4))

    def energy(state):
        _, b, va, vb = (float(each[0, 0]) for each in state)
        m11, m12, m22 = 5 / 3 + math.cos(b), 1 / 3 + math.cos(b) / 2, 1 / 3
        return (m11 * va**2 + 2 * m12 * va * vb + m22 * vb**2) / 2

    first = energy(state)
    for _ in range(2000):
        _, _, va, vb = state
        force = np.stack([va / 2, vb / 2], axis=-1)  # takes the damping away
        state = robots._arm_move(np, state, force)
    assert energy(state) == pytest.approx(first, rel=1e-3)


def test_memory_of_a_selection_is_in_tiles() -> None:
    from common.allocations import Allocations

    n = 3000
    f, references = torch.rand(2 * n, 3), torch.from_numpy(reference_points(n, 3)).float()
    with Allocations() as bytes_:
        tensor_torch.survivors(f, n, references)
    assert bytes_.peak < 2 * n * n * 4  # one matrix of points and reference points in float32 is as large as this


def test_real_scale_needs_a_gpu(capsys) -> None:
    assert main("tensorized_emo", ["preset=paper"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_bad_problems_and_settings_are_refused() -> None:
    one = np.ones(3)
    with pytest.raises(ValueError, match="gene 0 has the bounds 1 and 1"):
        Problem("p", lambda x: x, one, one, 2)
    with pytest.raises(ValueError, match=r"bounds of shapes \(3,\) and \(2,\)"):
        Problem("p", lambda x: x, one, np.ones(2), 2)
    with pytest.raises(ValueError, match="single-objective"):
        Problem("p", lambda x: x, 0 * one, one, 1)
    with pytest.raises(ValueError, match="single-objective"):
        reference_points(10, 1)
    with pytest.raises(ValueError, match="one reference point for each objective"):
        reference_points(2, 3)
    with pytest.raises(ValueError, match="at least 11 points"):
        Setting("moead", dtlz(2), 10)
    with pytest.raises(ValueError, match="no algorithm 'spea'"):
        Setting("spea", dtlz(2), 20)
    with pytest.raises(ValueError, match="no aggregation 'sum'"):
        Setting("moead", dtlz(2), 91, aggregation="sum")
    with pytest.raises(ValueError, match="a population of 1"):
        Setting("nsga3", dtlz(2), 1)
    with pytest.raises(ValueError, match="2 variables for 3 objectives"):
        dtlz(1, 2)
    with pytest.raises(ValueError, match="no DTLZ8"):
        dtlz(8)
    with pytest.raises(ValueError, match="front of DTLZ7"):
        front(7)
    with pytest.raises(ValueError, match="no robot 'ant'"):
        robots.robot("ant", 10)
    with pytest.raises(ValueError, match="0 steps"):
        robots.robot("reacher", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "start at 1"),
        ({"estimates": 5}, "at least 20"),
        ({"quality_population": 10}, "at least 15"),
        ({"quality_problems": [2, 7]}, "known front"),
        ({"peer_problems": [1]}, "the first among the second"),
        ({"peer_seeds": 3}, "at least 4"),
        ({"peer_population": 105}, "rising sizes"),
        ({"peer_sizes": [190, 105]}, "rising sizes"),
        ({"twin_bits": 16}, "wanted 32 or 64"),
        ({"dimensions": [1024]}, "for a trend"),
        ({"robot_population": 2}, "at least 4"),
    ],
)
def test_bad_options_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["smoke"], **changes)
