"""Gates and gradients against enumeration and plain autograd; the space, its costs, and every bad input."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.agreement import relative_error
from common.command_line import main
from common.nas import LatencyTable, mobilenet_v2, network_torch
from common.nas.counting import count_torch
from papers.proxyless_nas import checks, cost, data, memory, published, retrain, search, small, space, trials
from papers.proxyless_nas.config import PRESETS
from papers.proxyless_nas.cost import Cost
from papers.proxyless_nas.gates import MODES, Gates, rescale, sample, softmax
from papers.proxyless_nas.measured import correlation
from papers.proxyless_nas.mixed_torch import mixed_op
from papers.proxyless_nas.space import SEVEN, ZERO, Candidate, Place, parse

pytestmark = pytest.mark.xdist_group("proxyless_nas")

seeds = st.integers(0, 2**31).map(np.random.default_rng)


# Gates.


def test_draws_follow_the_probabilities() -> None:
    alpha, rng = np.array([0.3, -1.0, 0.8, 0.0]), np.random.default_rng(0)
    counts = np.bincount([sample(alpha, "full", rng).active for _ in range(1500)], minlength=4)
    assert stats.chisquare(counts, 1500 * softmax(alpha)).pvalue > 1e-3
    pairs, active = np.zeros((4, 4)), np.zeros((4, 4))
    for _ in range(2000):
        gates = sample(alpha, "two", rng)
        i, j = gates.involved
        pairs[i, j] += 1
        active[i, j] += gates.active == i
    p = softmax(alpha)
    for i, j in itertools.combinations(range(4), 2):
        want = p[i] * p[j] / (1 - p[i]) + p[i] * p[j] / (1 - p[j])  # without replacement, in either order
        assert pairs[i, j] / 2000 == pytest.approx(want, abs=0.03)
        assert active[i, j] / pairs[i, j] == pytest.approx(p[i] / (p[i] + p[j]), abs=0.1)


@given(seeds, st.integers(2, 8))
def test_two_paths_leave_the_other_probabilities_alone(rng: np.random.Generator, count: int) -> None:
    alpha = rng.normal(scale=3, size=count)
    gates = sample(alpha, "two", rng)
    pair = list(gates.involved)
    after = alpha.copy()
    after[pair] += rng.normal(size=2)
    shifted = rescale(alpha, after, gates)
    np.testing.assert_allclose(np.delete(softmax(shifted), pair), np.delete(softmax(alpha), pair), atol=1e-12)
    assert shifted[pair[0]] - shifted[pair[1]] == pytest.approx(after[pair[0]] - after[pair[1]])


def test_claims_of_exactness_hold_and_their_faults_show() -> None:
    assert checks.two_path(0) < 1e-12 < 1e-3 < checks.two_path(0, mechanism=False)
    right, wrong = checks.estimator(0), checks.estimator(0, mechanism=False)
    assert max(right.values()) < 1e-12 and wrong["binary gates"] > 1e-3


# The place.


@pytest.mark.parametrize("mode", ["every", "full", "full_v2", "two"])
@pytest.mark.parametrize("active", [0, 2, 6])
def test_gradient_is_the_papers_formula(mode: str, active: int) -> None:
    """Against sum_j <dL/dm, o_j> p_j (delta_ij - p_i), written out; Zero is among the candidates."""
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    place = Place(inputs=3, outputs=3, stride=1, candidates=(*SEVEN[:6], ZERO))
    modules = [
        network_torch.build(layer, dtype=torch.float64) if (layer := place.layer(c)) else torch.nn.Identity()
        for c in place.candidates
    ]
    x = torch.from_numpy(rng.normal(size=(2, 3, 5, 5))).requires_grad_()
    dy, start = torch.from_numpy(rng.normal(size=(2, 3, 5, 5))), rng.normal(size=7)
    gates = Gates(active, tuple(sorted((active, 3))) if mode == "two" else tuple(range(7)))
    alpha = torch.from_numpy(start).requires_grad_()
    y = mixed_op(x, alpha, modules, gates, mode)
    y.backward(dy)
    outputs = [module(x.detach()) for module in modules]
    assert torch.equal(y, outputs[active]) or relative_error(y.detach(), outputs[active].detach()) < 1e-12
    products, involved, want = np.array([(o * dy).sum().item() for o in outputs]), list(gates.involved), np.zeros(7)
    p = softmax(start[involved])
    want[involved] = [sum(products[j] * p[b] * ((i == j) - p[a]) for b, j in enumerate(involved)) for a, i in enumerate(involved)]
    assert relative_error(alpha.grad, want) < 1e-10
    for j, module in enumerate(modules):
        for weight in module.parameters():
            if j == active:
                assert weight.grad is not None and weight.grad.abs().max() > 0
            elif mode != "every":
                assert weight.grad is None
    alone = x.detach().requires_grad_()
    modules[active](alone).backward(dy)
    assert relative_error(x.grad, alone.grad) < 1e-10


def test_a_shortcut_inside_or_around_the_candidates_is_the_same() -> None:
    """x added to every candidate adds one constant to all gate gradients; the gradient of alpha has none of it."""
    rng = np.random.default_rng(2)
    x, dy = torch.from_numpy(rng.normal(size=(2, 4))), torch.from_numpy(rng.normal(size=(2, 4)))
    matrices = torch.from_numpy(rng.normal(size=(3, 4, 4)))
    found = []
    for inside in (True, False):
        operations = [lambda x, m=m, inside=inside: x @ m + (x if inside else 0) for m in matrices]
        alpha = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
        y = mixed_op(x, alpha, operations, Gates(1, (0, 1, 2)), "full_v2") + (0 if inside else x)
        y.backward(dy)
        found.append((y.detach().numpy(), alpha.grad.numpy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_all_modes_agree_between_the_frameworks() -> None:
    """Outputs and gradients of input, alpha and all weights, from the same gates; inactive weights have None there and 0 here."""
    import jax
    import jax.numpy as jnp

    from papers.proxyless_nas import mixed_jax

    rng = np.random.default_rng(4)
    matrices, x, dy = rng.normal(size=(4, 3, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    alpha, draws = rng.normal(size=4), {mode: Gates(2, (0, 2) if mode == "two" else (0, 1, 2, 3)) for mode in MODES}
    want = {}
    for mode, gates in draws.items():
        layers = [torch.nn.Linear(3, 3, bias=False, dtype=torch.float64) for _ in matrices]
        for layer, matrix in zip(layers, matrices, strict=True):
            layer.weight.data = torch.from_numpy(matrix.T.copy())
        inputs = torch.from_numpy(x).requires_grad_(), torch.from_numpy(alpha).requires_grad_()
        y = mixed_op(*inputs, [torch.nn.Sequential(layer, torch.nn.Tanh()) for layer in layers], gates, mode)
        y.backward(torch.from_numpy(dy))
        grads = [np.zeros((3, 3)) if layer.weight.grad is None else layer.weight.grad.numpy().T for layer in layers]
        dalpha = np.zeros(4) if inputs[1].grad is None else inputs[1].grad.numpy()
        want[mode] = [y.detach().numpy(), inputs[0].grad.numpy(), dalpha, *grads]
    functions = [lambda w, x: jnp.tanh(x @ w) for _ in matrices]

    @functools.partial(jax.jit, compiler_options=checks.QUICK)
    def everything(active, x, alpha, weights, dy):
        found = {}
        for mode, gates in draws.items():
            mask = jnp.isin(jnp.arange(4), jnp.array(gates.involved))
            call = functools.partial(mixed_jax.mixed_op, operations=functions, active=active, involved=mask, mode=mode)
            y, pull = jax.vjp(lambda x, a, w, call=call: call(x, a, weights=w), x, alpha, weights)
            dx, dalpha, dweights = pull(dy)
            found[mode] = [y, dx, dalpha, *dweights]
        return found

    with jax.enable_x64(True):
        got = everything(2, *map(jnp.asarray, (x, alpha)), list(map(jnp.asarray, matrices)), jnp.asarray(dy))
    for mode in MODES:
        for mine, theirs in zip(got[mode], want[mode], strict=True):
            assert relative_error(mine, theirs) < 1e-9, mode
    with pytest.raises(ValueError, match="3 operations, 4 weights, 4 alphas"):
        mixed_jax.mixed_op(jnp.zeros(1), jnp.zeros(4), functions[:3], list(matrices), 0, jnp.ones(4, bool))
    with pytest.raises(ValueError, match="mode is 'soft'"):
        mixed_jax.mixed_op(jnp.zeros(1), jnp.zeros(4), functions, list(matrices), 0, jnp.ones(4, bool), "soft")


def test_nothing_of_inactive_candidates_is_kept() -> None:
    """By exact bytes: full_v2 keeps the active candidate's, "full" one more output for each of the others."""
    where = memory.place_of(SEVEN, cells=1)
    gates = [Gates(0, tuple(range(7)))]
    of = {mode: memory.step(where, gates, mode) for mode in ("path", "every", "full", "full_v2")}
    output = 4 * memory.BATCH * 8 * 8 * 12
    assert of["full_v2"] - of["path"] <= output + 200  # the active candidate's output, for its own product
    assert of["full"] - of["path"] == pytest.approx(7 * output, abs=500)
    assert of["every"] > 4 * of["path"]


@pytest.mark.slow
def test_a_switch_left_to_jax_keeps_more_than_one_path() -> None:
    one = max(memory.alone_jax(3), memory.alone_jax(6))
    assert memory.step_jax("full_v2") < one < 1.1 * one < memory.step_jax("switch") < memory.step_jax("every") / 2


# The space and its costs.


def test_the_papers_space() -> None:
    whole = space.imagenet()
    assert len(whole.places) == 21 and sum(ZERO in place.candidates for place in whole.places) == 15
    assert [size for _, size in whole.at()][::4] == [112, 56, 28, 14, 14, 7]
    assert whole.network([place.candidates[0] for place in whole.places]).epsilon == 1e-3
    # Every layer of it has a key in the authors' table, and the two ways to price it agree.
    table = cost.pixel_table()
    one, other = cost.pixel(whole), cost.latency(whole, table)
    assert one.rest == pytest.approx(other.rest) and all(np.array_equal(a, b) for a, b in zip(one.of, other.of, strict=True))
    assert all(
        own[place.candidates.index(ZERO)] == 0
        for own, place in zip(one.of, whole.places, strict=True)
        if ZERO in place.candidates
    )


@given(seeds)
@settings(max_examples=4)
def test_multiply_adds_of_a_network_are_the_sum_of_its_parts(rng: np.random.Generator) -> None:
    for where in (space.imagenet(), space.photos(), space.digits()):
        picks = search.draw_uniformly(where, rng)
        net = where.network(search.chosen(where, picks))
        assert cost.macs(where).total(picks) == net.count(where.size, where.size).macs
        assert cost.macs(where).uniform > 1


def test_references_of_the_authors_are_mobilenets() -> None:
    for width, millions in published.MOBILENET_V2_MILLIONS.items():
        assert mobilenet_v2(width).count(224, 224).macs / 1e6 == pytest.approx(millions, rel=0.015)


@pytest.mark.parametrize("name", sorted(published.SEARCHED))
def test_searched_networks_in_closed_form_are_what_is_built(name: str) -> None:
    net = space.searched(name)
    model = network_torch.Network(net, None, device="meta").eval()
    assert count_torch(model, torch.empty(1, 224, 224, 3, device="meta")) == net.count(224, 224)


def test_a_constant_prediction_has_no_correlation() -> None:
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.5])) > 0.99
    assert correlation(np.full(5, 3.0), np.arange(5.0)) == 0.0


class Made(trials.Trials):
    """Searches with known ends: candidate 0 is cheap by the first cost, 1 by the second, 2 by the third."""

    targets = ("cpu", "pixel", "macs")

    def __init__(self) -> None:
        where, nothing = memory.place_of(SEVEN[:3], cells=1), (np.zeros(0), np.zeros(0, int))
        self.config, self.kept = dataclasses.replace(PRESETS["laptop"], seeds=2), {}
        self.task = data.Task("none", where, nothing, nothing, nothing, "", "")
        self.run = SimpleNamespace(track=lambda items, _: items, keep=self.kept.__setitem__)
        self.costs = {t: Cost(1.0, (np.where(np.arange(3) == i, 1.0, 2.0 + i),), "ms") for i, t in enumerate(self.targets)}

    def found(self, seed, target, with_cost=True):
        return SimpleNamespace(picks=(self.targets.index(target) if with_cost else 0,))

    def random(self, seed):
        return (0,)

    def tested(self, seed, picks):
        return retrain.Tested(1.0 - 0.1 * picks[0], 0.5 + 0.01 * picks[0])


def test_claims_of_the_searches_are_what_they_say() -> None:
    made = Made()
    found = trials.specialise(made)
    assert found == pytest.approx({"cpu": 2 / 3, "pixel": 2 / 4, "macs": 2 / 5, "accuracy spread": 2.0})
    assert trials.no_latency_term(made)["mean"] == pytest.approx(2 / 4)
    # Random search has a loss of 1.0 and a cost of 4, the search 0.9 and 2; the reference is the mean, 1 + 7 / 3.
    want = 0.1 + made.config.latency_weight * (4 - 2) / (1 + 7 / 3)
    assert trials.over_random(made)["mean"] == pytest.approx(want)


# Bad input.


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="the place 8->8, stride 1 has no candidate"):
        Place(inputs=8, outputs=8, stride=1, candidates=())
    with pytest.raises(ValueError, match="the place 8->8, stride 1 has only Zero as a candidate"):
        Place(inputs=8, outputs=8, stride=1, candidates=(ZERO,))
    with pytest.raises(ValueError, match="the place 8->16, stride 1 has Zero as a candidate but no shortcut"):
        Place(inputs=8, outputs=16, stride=1, candidates=(SEVEN[0], ZERO))
    with pytest.raises(ValueError, match="twice"):
        Place(inputs=8, outputs=16, stride=1, candidates=(SEVEN[0], SEVEN[0]))
    with pytest.raises(ValueError, match="k9e9 is no candidate here"):
        Place(inputs=8, outputs=16, stride=1, candidates=SEVEN).layer(Candidate(9, 9))
    with pytest.raises(ValueError, match=r"place 1 is 'k5x3'; wanted Z or a candidate"):
        parse("k3e3 k5x3")
    with pytest.raises(ValueError, match="2 candidates for 21 places"):
        space.imagenet().network(parse("k3e3 Z"))
    with pytest.raises(ValueError, match="no searched network 'tpu'"):
        space.searched("tpu")
    with pytest.raises(ValueError, match='mode "two" draws two candidates, but there is one'):
        sample(np.zeros(1), "two", np.random.default_rng(0))
    with pytest.raises(ValueError, match="mode is 'darts'"):
        sample(np.zeros(2), "darts", np.random.default_rng(0))
    with pytest.raises(ValueError, match="the active candidate 3 is not among"):
        Gates(3, (0, 1))
    x, alpha = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match="1 operations, 2 alphas"):
        mixed_op(x, alpha, [torch.nn.Identity()], Gates(0, (0, 1)))
    with pytest.raises(ValueError, match="wants gates that involve two candidates, not 1"):
        mixed_op(x, alpha, [torch.nn.Identity()] * 2, Gates(0, (0,)), "two")
    with pytest.raises(ValueError, match="mode is 'soft'"):
        mixed_op(x, alpha, [torch.nn.Identity()] * 2, Gates(0, (0, 1)), "soft")
    table = dict(cost.pixel_table())
    missing = "56x56x24 skip k5e3"
    with pytest.raises(KeyError, match=f"no latency of '{missing}'"):
        cost.latency(space.imagenet(), LatencyTable({k: v for k, v in table.items() if k != missing}, "Pixel 1"))
    for value in (float("nan"), -0.1):
        with pytest.raises(ValueError, match="latency of '56x56x24 skip k5e3'"):
            LatencyTable(table | {missing: value}, "Pixel 1")
    with pytest.raises(ValueError, match="no network costs at most 1 ms"):
        small.knapsack([np.zeros(2)], Cost(5.0, (np.ones(2),), "ms"), 1.0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("steps=0", "steps is 0; wanted at least 1"),
        ("networks=2", "networks 2"),
        ("alpha_rate=-1", "alpha_rate is -1"),
        ("mode=soft", "expected one of [every, full, full_v2, two]"),
    ],
)
def test_bad_options_are_one_sentence(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("proxyless_nas", ["preset=smoke", option]) == 2
    assert message in capsys.readouterr().err


def test_the_papers_scale_is_refused_where_it_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.runner.gpu", lambda: None)
    assert main("proxyless_nas", ["preset=paper"]) == 2
    assert "searching on ImageNet needs a GPU" in capsys.readouterr().err
