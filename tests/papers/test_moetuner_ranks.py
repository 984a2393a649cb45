"""The layer on real processes against the counts and the dense model; a wrong map is noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common import zoo
from common.agreement import relative_error
from common.data import text
from common.distributed import Ranks
from papers.moetuner import layer_torch, profile, served, traffic, twins
from papers.moetuner.setting import MODEL
from papers.moetuner.traffic import Flow

pytestmark = pytest.mark.xdist_group("moetuner")


@pytest.fixture(scope="module")
def ranks():
    with Ranks(4) as these:
        yield these


@pytest.fixture(scope="module")
def case():
    """Five sequences, so that ranks have different numbers of them, and an uneven placement with a rank without experts in a layer."""
    sequences = profile.spread(text.king_james().held_out, 5, 24)
    model = zoo.load(MODEL).torch(dtype=torch.float64)
    with torch.inference_mode():
        want = model(torch.from_numpy(sequences.astype(np.int64))).flatten(0, 1).numpy()
    where = np.random.default_rng(3).integers(0, 4, (4, 8))
    where[2] = [0, 0, 1, 1, 3, 3, 1, 0]
    return sequences, model, want, where


@pytest.mark.parametrize("flow", Flow)
def test_ranks_send_what_is_counted_and_compute_the_model(ranks, case, flow) -> None:
    sequences, model, want, where = case
    assert relative_error(served.logits(ranks, MODEL, sequences, where, where, flow), want) < 1e-12
    counted = traffic.count(profile.routes_torch(model, sequences), where, 4, flow)
    np.testing.assert_array_equal(served.rows(ranks, MODEL, sequences, where, flow), counted)


def test_weights_that_lie_elsewhere_are_noticed(ranks, case) -> None:
    sequences, _, want, where = case
    got = served.logits(ranks, MODEL, sequences, where, np.roll(where, 1, axis=1), Flow.follow)
    assert relative_error(got, want) > 1e-3


def _bytes_of_a_layer(group, place):
    """Rows counted by the layer, and the bytes that the group has counted."""
    width, tokens = 6, 5 + group.rank
    state = layer_torch.State(torch.randn(tokens, width, dtype=torch.float64), torch.arange(tokens) + 100 * group.rank)
    router = torch.randn(width, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    experts = {int(e): torch.tanh for e in np.nonzero(place == group.rank)[0]}
    before = group.traffic.to.copy()
    _, rows = layer_torch.mixture(
        group, state, lambda x: x, lambda x: x @ router, experts, torch.from_numpy(place), 2, Flow.follow
    )
    return rows, group.traffic.to - before


def test_the_groups_own_bytes_agree_with_the_rows(ranks) -> None:
    place = np.array([0, 1, 1, 3, 2, 0, 1, 3])
    for rank, (rows, sent) in enumerate(ranks.run(_bytes_of_a_layer, place)):
        # Dispatch carries the row and its weight, combine the row; four labels of eight bytes go with each.
        want = rows[0] * (7 * 8 + 32) + rows[1] * (6 * 8 + 32)
        want[rank] = 0
        np.testing.assert_array_equal(sent, want)


def test_gradients_travel_back(ranks) -> None:
    given, place = twins.inputs(np.random.default_rng(0), tokens=10), np.array([0, 1, 1, 3, 2, 0, 1, 3])
    alone, found = twins.dense(given), twins.ranked(ranks, given, place)
    for name in alone:
        assert relative_error(found[name], alone[name]) < 1e-12, name


@pytest.mark.slow
def test_both_frameworks_choose_the_same_routes(case) -> None:
    sequences, *_ = case
    trained = zoo.load(MODEL)
    one, other = profile.routes_torch(trained.torch(), sequences), profile.routes_jax(trained.jax(), sequences, batch=5)
    assert (one.chosen != other.chosen).mean() < 1e-3  # a tie within float32's last digit may fall either way
