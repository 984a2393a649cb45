"""Programs against brute force, dynamic programming and each other; searches against a loop; profiles, traffic, every bad input."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from common import UserError
from common.command_line import main
from common.ilp import Status
from papers.moetuner import checks, dp, evaluate, ilp, profile, search_jax, search_torch, synthetic, traffic
from papers.moetuner.config import Config
from papers.moetuner.ilp import Objective
from papers.moetuner.placement import Method, lpt, place
from papers.moetuner.profile import Profile, Trace
from papers.moetuner.traffic import Flow

pytestmark = pytest.mark.xdist_group("moetuner")

seeds = st.integers(0, 2**31).map(np.random.default_rng)
ALIKE = np.full((4, 4), 3.0)
THREE = np.array([[1.0, 4.0, 1.0], [4.0, 1.0, 2.0], [1.0, 2.0, 1.0]])
NODES = np.where(np.arange(4)[:, None] // 2 == np.arange(4) // 2, 450.0, 22.5)


def random_trace(rng, layers=3, tokens=60, experts=8, active=2, length=10) -> Trace:
    weight = rng.random((layers, 1, experts)) ** 2 + 0.05
    order = np.argsort(rng.random((layers, tokens, experts)) / weight, axis=2)
    return Trace(order[..., :active], experts, length)


def brute_force(exchange, bandwidth, sizes, objective) -> float:
    """Every assignment of every layer, costs by loops."""
    gaps, count = exchange.shape[:2]
    best = np.inf
    for way in itertools.product(itertools.permutations(range(count)), repeat=gaps + 1):
        held = np.zeros(count)
        for layer, gpus in enumerate(way):
            for group, gpu in enumerate(gpus):
                held[gpu] += sizes[layer][group]
        if len(set(held)) > 1:
            continue
        total = 0.0
        for gap in range(gaps):
            t = np.zeros((count, count))
            for c, d in itertools.product(range(count), repeat=2):
                g, h = way[gap][c], way[gap + 1][d]
                if g != h:
                    t[g, h] += exchange[gap, c, d] * (bandwidth[~np.eye(count, dtype=bool)].max() / bandwidth[g, h])
            total += {"pair": t.max(), "total": t.sum(), "gpu": max(t.sum(0).max(), t.sum(1).max())}[objective.value]
        best = min(best, total)
    return best


# --- profiles ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seeds, st.integers(1, 3))
def test_profile_is_what_loops_count(rng, active) -> None:
    trace = random_trace(rng, active=active)
    found = profile.profile(trace)
    load, moved = np.zeros(found.load.shape, int), np.zeros(found.moved.shape, int)
    for layer, token in np.ndindex(trace.chosen.shape[:2]):
        for expert in trace.chosen[layer, token]:
            load[layer, expert] += 1
            if layer + 1 < trace.layers:
                for other in trace.chosen[layer + 1, token]:
                    moved[layer, expert, other] += 1
    assert found.load.dtype == found.moved.dtype == np.int64
    np.testing.assert_array_equal(found.load, load)
    np.testing.assert_array_equal(found.moved, moved)
    assert profile.successors(found.moved, 8) == pytest.approx(1)


def test_statistics_have_their_known_values() -> None:
    # Two layers where each expert has one successor: log2(experts) bits, and all of it goes to one.
    chosen = np.tile(np.arange(4), 25)[None, :, None].repeat(2, axis=0)
    one = profile.profile(Trace(chosen, 4, 1))
    assert profile.information(one.moved) == pytest.approx(2)
    assert profile.successors(one.moved, 1) == 1 and profile.variation(one.load) == 0
    rng = np.random.default_rng(0)
    apart = profile.profile(Trace(rng.integers(0, 4, (2, 50_000, 1)), 4, 1))
    assert profile.information(apart.moved) < 1e-3
    np.testing.assert_allclose(profile.independent(apart), apart.moved, rtol=0.06)
    assert profile.independent(one).sum() == one.moved.sum()
    np.testing.assert_allclose(profile.independent(apart).sum(axis=2), apart.moved.sum(axis=2))


def test_shift_test_finds_dependence_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    linked = synthetic.draw(3000, rng, 2, 8, 0.3, 0.4)
    assert profile.shift_test(linked, 99, rng) == 0.01
    # Independent layers, each of which stays with an expert for a while: a permutation of tokens would call them dependent.
    slow = np.stack([np.repeat(rng.integers(0, 8, 60), 50) for _ in range(2)])[..., None]
    assert profile.shift_test(Trace(slow, 8, 1), 99, rng) > 0.02


def test_synthetic_routes_have_the_skew_and_the_dependence() -> None:
    for skew, dependence in ((0.0, 0.0), (0.6, 0.3), (0.3, 1.0)):
        trace = synthetic.draw(8000, np.random.default_rng(0), 4, 8, skew, dependence)
        counted = profile.profile(trace)
        popularity = np.sort(counted.load, axis=1)[:, ::-1] / counted.load.sum(axis=1, keepdims=True)
        # Layers have the same popularity by rank, whatever follows what.
        np.testing.assert_allclose(popularity, popularity[:1].repeat(4, axis=0), atol=0.02)
        follows = profile.successors(counted.moved, 1)
        assert follows == pytest.approx(0.5) if dependence == 1 else follows < 0.5
        if skew == dependence == 0:
            np.testing.assert_allclose(popularity, 1 / 8, atol=0.02)
    fitted = synthetic.fit(synthetic.draw(4000, np.random.default_rng(3), 8, 8, 0.5, 0.6), tokens=2000)
    assert fitted == pytest.approx((0.5, 0.6), abs=0.1)


# --- programs ---------------------------------------------------------------------------------------------------------


def test_there_are_as_many_groupings_as_combinatorics_says() -> None:
    assert len(checks.every_grouping(8, 4, False)) == 1701  # Stirling number of the second kind
    assert len(checks.every_grouping(8, 4, True)) == 105  # 8! / (2^4 4!)
    assert len({tuple(each) for each in checks.every_grouping(8, 4, False).tolist()}) == 1701


@settings(max_examples=5)
@given(seeds, st.booleans(), st.sampled_from(["highs", "cp_sat"]))
def test_first_program_equals_brute_force(rng, equal, solver) -> None:
    load = rng.integers(0, 50, (2, 6))
    load[:, 0] += 1
    found = ilp.group(load, 3, equal=equal, solver=solver)
    ways = checks.every_grouping(6, 3, equal)
    best = [min(ilp.imbalance(each[None], way[None], 3)[0] for way in ways) for each in load]
    assert found.objective == pytest.approx(sum(best)) and found.status is Status.OPTIMAL and found.gap == 0
    for groups in found.place:
        assert set(groups) == {0, 1, 2}
        assert not equal or (np.bincount(groups) == 2).all()
    assert found.objective <= sum(ilp.imbalance(load, np.stack([lpt(each, 3) for each in load]), 3)) + 1e-9


@settings(max_examples=12)
@given(seeds, st.sampled_from(Objective), st.booleans())
def test_dynamic_programming_equals_brute_force(rng, objective, uneven) -> None:
    exchange = rng.integers(0, 100, (2, 3, 3))
    sizes = np.stack([rng.permutation([1, 2, 3] if uneven else [2, 2, 2]) for _ in range(3)])
    bandwidth = rng.integers(1, 5, (3, 3)).astype(float)
    found = dp.assign(exchange, bandwidth, sizes, objective=objective)
    assert found.objective == pytest.approx(brute_force(exchange, bandwidth, sizes, objective))
    held = np.zeros(3, int)
    for size, gpus in zip(sizes, found.place, strict=True):
        np.add.at(held, gpus, size)
    assert (held == held[0]).all()


@pytest.mark.parametrize(
    ("solver", "objective", "uneven", "bandwidth"),
    [
        ("highs", Objective.pair, False, np.ones((3, 3))),
        ("highs", Objective.pair, True, THREE),
        ("highs", Objective.gpu, False, THREE),
        ("highs", Objective.total, True, THREE),
        ("cp_sat", Objective.pair, True, THREE),
        ("cp_sat", Objective.gpu, True, np.ones((3, 3))),
        ("cp_sat", Objective.total, False, THREE),
    ],
)
def test_second_program_equals_dynamic_programming(solver, objective, uneven, bandwidth) -> None:
    rng = np.random.default_rng(5)
    exchange = rng.integers(0, 300, (2, 3, 3)) * 4
    sizes = np.stack([rng.permutation([1, 2, 3] if uneven else [2, 2, 2]) for _ in range(3)])
    exact = dp.assign(exchange, bandwidth, sizes, objective=objective)
    found = ilp.assign(exchange, bandwidth, sizes, objective=objective, solver=solver)
    assert found.objective == pytest.approx(exact.objective, rel=1e-6)
    assert (np.sort(found.place, axis=1) == np.arange(3)).all()
    assert found.objective == pytest.approx(ilp.cost(exchange, bandwidth, found.place, objective).sum())


def test_two_layers_by_sum_are_a_linear_assignment() -> None:
    exchange = np.random.default_rng(2).integers(0, 300, (1, 4, 4))
    kept = exchange[0][linear_sum_assignment(exchange[0], maximize=True)].sum()
    for found in (ilp.assign(exchange, ALIKE, objective=Objective.total), dp.assign(exchange, ALIKE, objective=Objective.total)):
        assert found.objective == exchange.sum() - kept


def test_by_layers_is_optimal_where_gpus_are_alike_and_bounded_where_not() -> None:
    exchange = np.random.default_rng(3).integers(0, 300, (4, 3, 3))
    exact, found = dp.assign(exchange, np.ones((3, 3))), ilp.assign_by_layers(exchange, np.ones((3, 3)))
    assert found.status is Status.OPTIMAL and found.objective == pytest.approx(exact.objective)
    exact, found = dp.assign(exchange, THREE), ilp.assign_by_layers(exchange, THREE)
    assert found.bound <= exact.objective + 1e-6 and exact.objective <= found.objective + 1e-6


def test_a_search_that_is_cut_short_is_not_proven() -> None:
    exchange = np.random.default_rng(4).integers(0, 900, (4, 3, 3))
    cut = ilp.assign(exchange, THREE, solver="cp_sat", gap=0.3)
    exact = dp.assign(exchange, THREE).objective
    assert cut.bound <= exact <= cut.objective <= 1.3 / 0.7 * exact
    if cut.status is not Status.OPTIMAL:
        assert "not proven: bound" in str(cut)
    with pytest.raises(ValueError, match=r"not proven, bound .*; give it more time, or take"):
        ilp.assign(exchange, THREE, time_limit=1e-6)


@pytest.mark.parametrize("method", Method)
@settings(max_examples=2)
@given(rng=seeds)
def test_placements_keep_what_they_promise(rng, method) -> None:
    profiled = profile.profile(random_trace(rng))
    where = place(profiled, NODES, method, seed=1, groups=ilp.group(profiled.load, 4, equal=True).place)
    loose = place(profiled, NODES, method, seed=1)
    assert all(set(each) == {0, 1, 2, 3} for each in loose)
    assert where.shape == profiled.load.shape and all(set(each) == {0, 1, 2, 3} for each in where)
    assert (np.stack([np.bincount(each) for each in where]) == 2).all()
    if method is not Method.balanced:  # the first program alone does not know of memory
        assert (np.bincount(loose.ravel()) == loose.size // 4).all()
    if method in (Method.tuned, Method.balanced):
        best = ilp.group(profiled.load, 4, equal=True).objective
        assert ilp.imbalance(profiled.load, where, 4).sum() == pytest.approx(best)


def test_tuned_moves_less_than_groups_left_where_they_are() -> None:
    profiled = profile.profile(synthetic.draw(4000, np.random.default_rng(0), 6, dependence=0.9))
    where = {each: place(profiled, NODES, each, seed=1) for each in (Method.tuned, Method.balanced)}
    stay = np.tile(np.arange(4), (6, 1))
    tuned, balanced = (ilp.cost(ilp.exchanged(profiled, each, 4), NODES, stay).sum() for each in where.values())
    assert tuned < 0.8 * balanced


# --- searches ---------------------------------------------------------------------------------------------------------


def test_searches_make_the_moves_of_a_loop_in_both_frameworks() -> None:
    rng = np.random.default_rng(6)
    load = rng.integers(1, 1000, 16)
    begin = search_torch.starts(5, 16, 4, rng)
    want = np.array(checks.python_group(load, begin, 4, 50))
    np.testing.assert_array_equal(search_torch.group(load, begin, 4), want)
    np.testing.assert_array_equal(search_jax.group(load, begin, 4), want)
    np.testing.assert_array_equal(search_torch.group(load, begin, 4, moves=0), begin)
    # Where it ends no swap helps.
    cost = ilp.imbalance(load[None], want[:1], 4)[0]
    for a, b in itertools.combinations(range(16), 2):
        other = want[:1].copy()
        other[0, [a, b]] = other[0, [b, a]]
        assert ilp.imbalance(load[None], other, 4)[0] >= cost - 1e-9


def test_assignment_search_descends_to_where_no_swap_helps() -> None:
    rng = np.random.default_rng(7)
    exchange = rng.integers(0, 300, (3, 4, 4))
    begin = rng.permuted(np.tile(np.arange(4), (6, 4, 1)), axis=2)
    found = search_torch.assign(exchange, NODES, begin)
    np.testing.assert_array_equal(found, search_jax.assign(exchange, NODES, begin))
    for one, start in zip(found, begin, strict=True):
        here = ilp.cost(exchange, NODES, one).sum()
        assert here <= ilp.cost(exchange, NODES, start).sum() + 1e-9
        for layer, (a, b) in itertools.product(range(4), itertools.combinations(range(4), 2)):
            other = one.copy()
            other[layer, [a, b]] = other[layer, [b, a]]
            assert ilp.cost(exchange, NODES, other).sum() >= here - 1e-9
    assert min(ilp.cost(exchange, NODES, each).sum() for each in found) >= dp.assign(exchange, NODES).objective - 1e-9


# --- traffic and time -------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seeds, st.sampled_from(Flow))
def test_traffic_is_what_loops_count(rng, flow) -> None:
    trace = random_trace(rng, tokens=40)
    where = rng.integers(0, 4, (3, 8))
    want = np.zeros((3, 2, 4, 4), int)
    for token in range(40):
        home = token // 10 * 4 // 4
        for layer in range(3):
            experts = trace.chosen[layer, token]
            back = where[layer, experts[0]] if flow is Flow.follow else home
            for expert in experts:
                want[layer, 0, home, where[layer, expert]] += 1
                want[layer, 1, where[layer, expert], back] += 1
            home = back
    found = traffic.count(trace, where, 4, flow)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(traffic.arrivals(trace, where, 4), found[:, 0].sum(axis=1))
    assert traffic.remote(found).sum() == found.sum() - np.trace(found, axis1=2, axis2=3).sum()


def test_time_model_by_hand() -> None:
    from papers.moetuner.published import MIXTRAL

    # One layer, two tokens of which both go to experts 0 and 1: on GPU 0, on two GPUs, on two nodes.
    trace = Trace(np.zeros((1, 2, 2), int) + np.array([0, 1]), 8, 1)
    machines = evaluate.cluster(1, 2)
    flops = 2 * 3 * 4096 * 14_336
    together, apart = (evaluate.step(trace, np.array([[0, gpu] + [1] * 6]), machines, MIXTRAL, 16) for gpu in (0, 1))
    assert together.experts[0] == pytest.approx(4 * flops / machines.rate)
    assert apart.experts[0] == pytest.approx(2 * flops / machines.rate)
    assert together.attention == pytest.approx(apart.attention)
    # Token 0 begins on GPU 0 and token 1 on GPU 1. Together: 2 rows go from 1 to 0 and none back. Apart: one row each way, and
    # the second choices come back to GPU 0.
    row = 2 * 4096 / 450e9
    assert together.links[0] == pytest.approx(2 * row)
    assert apart.links[0] == pytest.approx(row + 2 * row)
    slow = evaluate.step(trace, np.array([[0, 1] + [1] * 6]), evaluate.cluster(2, 2), MIXTRAL, 16)
    assert slow.links[0] > 5 * apart.links[0] and slow.attention[0] > apart.attention[0]
    assert slow.seconds == pytest.approx(slow.attention[0] + slow.experts[0] + slow.links[0])


def test_two_nodes_share_their_links() -> None:
    machines = evaluate.cluster(2, 8)
    assert machines.bandwidth[0, 1] == pytest.approx(450e9 / 3)
    assert machines.bandwidth[0, 4] == machines.bandwidth[7, 0] == pytest.approx(45e9 / 4)
    assert np.isinf(np.diag(machines.bandwidth)).all()
    with pytest.raises(ValueError, match="3 GPUs in 2 nodes; wanted at least 2, as many in each node"):
        evaluate.cluster(2, 3)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_programs_are_refused() -> None:
    load, exchange = np.ones((2, 8), int), np.ones((1, 4, 4), int)
    with pytest.raises(ValueError, match="8 experts in 3 groups of equal size do not come out even"):
        ilp.group(load, 3, equal=True)
    with pytest.raises(ValueError, match="9 GPUs for 8 experts of a layer; wanted 2 to 8"):
        ilp.group(load, 9)
    with pytest.raises(ValueError, match="layer 1 has no tokens"):
        ilp.group(np.stack([load[0], 0 * load[0]]), 4)
    broken = ALIKE.copy()
    broken[2, 1] = 0
    for assign in (ilp.assign, dp.assign, ilp.assign_by_layers):
        with pytest.raises(ValueError, match="the bandwidth from GPU 2 to 1 is 0; wanted above 0"):
            assign(exchange, broken)
    with pytest.raises(ValueError, match=r"C has shape \(1, 4, 4\) and B \(3, 3\)"):
        ilp.assign(exchange, np.ones((3, 3)))
    with pytest.raises(ValueError, match="B has shape"):
        inspect.unwrap(ilp.slowness)(np.ones((2, 3)))
    # 1 + 5 and 5 + 1 can be dealt evenly, 4 + 2 and 5 + 1 to two GPUs cannot.
    two = np.ones((1, 2, 2), int)
    assert dp.assign(two, np.ones((2, 2)), np.array([[1, 5], [5, 1]])).objective >= 0
    for assign, message in ((dp.assign, "no assignment gives each of 2 GPUs 6"), (ilp.assign, "infeasible.*equal memory")):
        with pytest.raises(ValueError, match=message):
            assign(two, np.ones((2, 2)), np.array([[4, 2], [5, 1]]))
        with pytest.raises(ValueError, match="11 experts on 2 GPUs do not come out even"):
            assign(two, np.ones((2, 2)), np.array([[4, 2], [4, 1]]))
    with pytest.raises(ValueError, match="7 GPUs have 5,040 assignments of a layer"):
        dp.assign(np.ones((1, 7, 7), int), np.ones((7, 7)))
    with pytest.raises(ValueError, match="8 experts in 3 groups"):
        place(profile.profile(random_trace(np.random.default_rng(0))), np.ones((3, 3)), Method.contiguous)


def test_bad_profiles_are_refused() -> None:
    good = profile.profile(random_trace(np.random.default_rng(0)))
    more = good.load.copy()
    more[1, 3] += 1
    with pytest.raises(ValueError, match=r"R between layers 1 and 2 counts \d+ moves to the next layer for expert 3, but P says"):
        Profile(more, good.moved, 2)
    moved = good.moved.copy()
    here = int(moved[0, :, 4].argmax())  # an expert of layer 0 that has moves to expert 4
    moved[0, here, 5] += 1
    moved[0, here, 4] -= 1
    with pytest.raises(ValueError, match="moves from the last layer for expert 4"):
        Profile(good.load, moved, 2)
    with pytest.raises(ValueError, match="one R between two layers"):
        Profile(good.load[:2], good.moved, 2)
    with pytest.raises(ValueError, match="negative"):
        Profile(good.load - 100, good.moved, 2)
    with pytest.raises(ValueError, match="layer 0 has no tokens"):
        Profile(0 * good.load, 0 * good.moved, 2)


def test_bad_traces_are_refused(tmp_path) -> None:
    chosen = np.zeros((2, 6, 2), int) + np.array([0, 1])
    with pytest.raises(ValueError, match="wanted 0 to 0"):
        Trace(chosen, 1, 3)
    with pytest.raises(ValueError, match="wanted at least one of each, and whole sequences"):
        Trace(chosen, 8, 4)
    twice = chosen.copy()
    twice[1, 4] = 1
    with pytest.raises(ValueError, match="token 4 chose an expert of layer 1 twice"):
        Trace(twice, 8, 3)
    with pytest.raises(ValueError, match="wanted at least one that fits"):
        profile.spread(np.zeros(5, np.uint8), 1, 6)
    for options in ({"experts": 2}, {"dependence": 1.5}, {"skew": -1.0}):
        with pytest.raises(ValueError, match="wanted from 3 experts"):
            synthetic.draw(10, np.random.default_rng(0), 2, **options)
    with pytest.raises(UserError, match=r"wanted an \.npz file"):
        profile.read(tmp_path / "none.npz", 8)
    np.savez(tmp_path / "own.npz", chosen=chosen, length=3)
    assert profile.read(tmp_path / "own.npz", 8).tokens == 6
    with pytest.raises(UserError, match="wanted 0 to 0"):
        profile.read(tmp_path / "own.npz", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profiled": 0}, "wanted 1 or more"),
        ({"served": 300}, "wanted each no more than the next"),
        ({"compared": 6}, "multiple of the 4 devices"),
        ({"length": 4}, "wanted from 8"),
        ({"layers": 1}, "at least 2"),
        ({"limit": 0.0}, "above 0"),
        ({"crowd": 30}, "multiple of the 4 GPUs"),
        ({"twin_bits": 16}, "wanted 32 or 64"),
    ],
)
def test_impossible_options_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_real_scale_needs_a_gpu(capsys) -> None:
    assert main("moetuner", ["preset=paper"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
