"""Dominance and hypervolume: peers, properties and every bad input. Agreement with the definition follows from the declaration."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.allocations import Allocations
from kernels.pareto import crowding_distance, dominance_count, hype_fitness, hypervolume, non_dominated_rank

seeds = st.integers(0, 2**31).map(np.random.default_rng)


def points(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Half of the draws have few values, so that points tie."""
    return rng.integers(0, 4, (n, m)).astype(float) if rng.random() < 0.5 else rng.random((n, m))


@given(seeds, st.integers(1, 40), st.integers(1, 5))
def test_ranks_say_what_a_front_is(rng, n, m) -> None:
    f = points(rng, n, m)
    rank = non_dominated_rank(torch.from_numpy(f), block=int(rng.integers(1, 50))).numpy()
    better = (f[:, None] <= f[None]).all(axis=2) & (f[:, None] < f[None]).any(axis=2)
    for j in range(n):
        dominating = rank[better[:, j]]
        # A point lies one front behind the last that dominates it.
        assert rank[j] == (dominating.max() + 1 if len(dominating) else 0)


@given(seeds, st.integers(2, 40), st.integers(2, 4))
def test_ranks_do_not_depend_on_order_or_scale(rng, n, m) -> None:
    f = points(rng, n, m)
    rank = non_dominated_rank(torch.from_numpy(f)).numpy()
    order = rng.permutation(n)
    scaled = np.exp(f[order] * rng.uniform(0.5, 2, m))[:, rng.permutation(m)]
    assert (non_dominated_rank(torch.from_numpy(scaled)).numpy() == rank[order]).all()


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_enough_changes_nothing_of_what_is_ranked(rng, n, enough) -> None:
    f = torch.from_numpy(points(rng, n, 3))
    whole, part = non_dominated_rank(f).numpy(), non_dominated_rank(f, enough=enough).numpy()
    last = np.sort(whole)[min(enough, n) - 1]
    assert (part == np.minimum(whole, last + 1)).all()


def test_peers_give_the_same_ranks() -> None:
    moocore = pytest.importorskip("moocore")
    for seed, m in itertools.product(range(4), (2, 3, 5)):
        f = points(np.random.default_rng(seed), 200, m)
        assert (non_dominated_rank(torch.from_numpy(f)).numpy() == moocore.pareto_rank(f)).all()


def test_crowding_is_that_of_a_peer() -> None:
    pytest.importorskip("pymoo")
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    f = np.random.default_rng(0).random((40, 3))
    mine = crowding_distance(torch.from_numpy(f), torch.zeros(40, dtype=torch.int32)).numpy()
    theirs = calc_crowding_distance(f)  # the mean over the objectives instead of their sum
    assert (np.isinf(mine) == np.isinf(theirs)).all()
    np.testing.assert_allclose(mine[np.isfinite(mine)], 3 * theirs[np.isfinite(theirs)])


@pytest.mark.parametrize("m", [2, 3])
def test_hypervolume_is_that_of_a_peer(m) -> None:
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        f = points(np.random.default_rng(seed), 60, m)
        corner = np.full(m, 3.1)
        mine = hypervolume(torch.from_numpy(f), torch.from_numpy(corner), block=7)
        assert float(mine) == pytest.approx(moocore.hypervolume(f, ref=corner), rel=1e-12)


@given(seeds, st.integers(1, 20))
def test_hypervolume_grows_with_points_and_ignores_the_dominated(rng, n) -> None:
    f, corner = torch.from_numpy(rng.random((n, 3))), torch.ones(3, dtype=torch.float64)
    whole = hypervolume(f, corner)
    assert hypervolume(f[: n - 1], corner) <= whole + 1e-12
    best = f[non_dominated_rank(f) == 0]
    assert float(hypervolume(best, corner)) == pytest.approx(float(whole), rel=1e-12)
    assert float(hypervolume(torch.cat([f, f]), corner)) == pytest.approx(float(whole), rel=1e-12)


def test_shares_of_all_points_are_the_covered_samples() -> None:
    rng = np.random.default_rng(0)
    f, samples = torch.from_numpy(rng.random((30, 4))), torch.from_numpy(rng.random((500, 4)))
    share = torch.cat([torch.zeros(1), 1 / torch.arange(1.0, 31.0, dtype=torch.float64)])
    covered = (f[None] <= samples[:, None]).all(dim=2).any(dim=1).double().mean()
    assert float(hype_fitness(f, samples, share, block=64).sum()) == pytest.approx(float(covered), rel=1e-12)


def test_tiles_keep_memory_far_below_all_pairs() -> None:
    f = torch.rand(6000, 3, generator=torch.Generator().manual_seed(0))
    for function in (lambda: non_dominated_rank(f), lambda: dominance_count(f, f)):
        with Allocations() as bytes_:
            function()
        # All pairs of one objective would take 36 MB as booleans, of three objectives 108 MB.
        assert bytes_.peak < 10e6


@pytest.mark.parametrize("backend", ["reference", "torch", "triton", "jax"])
def test_rows_of_nan_come_last_with_a_warning(backend) -> None:
    f = np.array([[0.5, 0.5], [np.nan, 0.0], [1.0, 1.0], [0.0, np.nan], [2.0, 0.4]], np.float32)
    array = f if backend == "reference" else torch.from_numpy(f)
    if backend == "jax":
        import jax.numpy as jnp

        array = jnp.asarray(f)
    with pytest.warns(UserWarning, match="hold a NaN"):
        rank = np.asarray(non_dominated_rank(array, backend=backend))
    assert rank.tolist() == [0, 2, 1, 2, 0]
    with pytest.warns(UserWarning, match="hold a NaN"):
        assert np.asarray(non_dominated_rank(array, enough=1, backend=backend)).tolist() == [0, 2, 1, 2, 0]


def test_half_precision_holds_the_numbers_of_many_rows() -> None:
    """400 neighbouring bfloat16 numbers, more than bfloat16 can count."""
    values = torch.arange(0x3F80, 0x3F80 + 400, dtype=torch.int16).view(torch.bfloat16)
    f = torch.stack([values, values], dim=1)
    assert non_dominated_rank(f).tolist() == list(range(400))
    assert non_dominated_rank(torch.stack([values, -values], dim=1)).tolist() == [0] * 400


def test_triton_ranks_points_rounded_to_float32() -> None:
    """Equal in float32, so neither dominates; the order of the float64 values must not decide."""
    f = torch.tensor([[1.0, 2.0 + 1e-12], [1.0 + 1e-12, 2.0]], dtype=torch.float64)
    assert non_dominated_rank(f, backend="triton").tolist() == [0, 0]


@pytest.mark.slow
def test_hundred_thousand_points_in_little_memory() -> None:
    """The naive mask of 131,072 points has 1.7e10 entries."""
    rng = np.random.default_rng(0)
    f = torch.from_numpy(rng.random((2**17, 3), np.float32))
    with Allocations(f) as bytes_:
        rank = non_dominated_rank(f).numpy()
    assert bytes_.peak < 2e8
    for j in rng.integers(0, len(f), 200):
        dominating = rank[((f <= f[j]).all(dim=1) & (f < f[j]).any(dim=1)).numpy()]
        assert rank[j] == (dominating.max() + 1 if len(dominating) else 0)


def test_bad_input_is_refused() -> None:
    a, flat = torch.rand(4, 3), torch.rand(4)
    bare = {
        f.__name__: inspect.unwrap(f) for f in (dominance_count, non_dominated_rank, crowding_distance, hypervolume, hype_fitness)
    }
    with pytest.raises(ValueError, match=r"points have the shape \(4,\); wanted \(points, objectives\)"):
        bare["non_dominated_rank"](flat)
    with pytest.raises(ValueError, match="one objective or more"):
        bare["non_dominated_rank"](torch.rand(4, 0))
    with pytest.raises(ValueError, match="enough is 0"):
        bare["non_dominated_rank"](a, enough=0)
    with pytest.raises(ValueError, match="block is 0"):
        bare["non_dominated_rank"](a, block=0)
    with pytest.raises(ValueError, match="points have 3 objectives, by has 2"):
        bare["dominance_count"](a, torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"rank has the shape \(3,\); wanted \(4,\)"):
        bare["crowding_distance"](a, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="exact for 2 and 3 objectives, got 4"):
        bare["hypervolume"](torch.rand(4, 4), torch.ones(4))
    with pytest.raises(ValueError, match=r"reference point has the shape \(2,\)"):
        bare["hypervolume"](a, torch.ones(2))
    with pytest.raises(ValueError, match="points have 3 objectives, samples 2"):
        bare["hype_fitness"](a, torch.rand(5, 2), torch.ones(3))
    with pytest.raises(ValueError, match="0 weights"):
        bare["hype_fitness"](a, torch.rand(5, 3), torch.ones(0))
