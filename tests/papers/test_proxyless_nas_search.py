"""Steps, searches and what they end with: against enumeration, a knapsack, the other framework, and a search that was killed."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import UserError
from common.agreement import assert_trees_agree
from common.models.weights import from_torch
from papers.proxyless_nas import checks, cost, data, imagenet, search, small, state
from papers.proxyless_nas.config import PRESETS, Method, Mode
from papers.proxyless_nas.cost import Cost
from papers.proxyless_nas.gates import Gates, Reinforce, reward, sample, softmax
from papers.proxyless_nas.mixed_torch import mixed_op
from papers.proxyless_nas.objective import Form, Objective
from papers.proxyless_nas.search import Search, begin, fixed
from papers.proxyless_nas.space import ZERO
from papers.proxyless_nas.supernet_torch import SuperNet

pytestmark = pytest.mark.xdist_group("proxyless_nas")

seeds = st.integers(0, 2**31).map(np.random.default_rng)


def tiny_search(
    mode: str = "full_v2", seed: int = 0, **options
) -> tuple[Search, torch.Tensor, torch.Tensor, np.random.Generator]:
    rng, where = np.random.default_rng(seed), checks.tiny()
    price = cost.macs(where)
    options = {"alpha_rate": 0.05, **options}
    made = Search(SuperNet(where, seed), price, Objective(price.uniform, 0.1), begin(where, rng), **options)
    images = torch.from_numpy(rng.normal(size=(6, 8, 8, 2)).astype(np.float32))
    return made, images, torch.from_numpy(rng.integers(3, size=6)), rng


@pytest.mark.parametrize("mode", ["full_v2", "two"])
def test_architecture_parameters_rest_where_zero_is_active(mode: str) -> None:
    made, images, labels, _ = tiny_search()
    zero = made.space.places[0].candidates.index(ZERO)
    before = [alpha.detach().clone() for alpha in made.alphas]
    gates = [Gates(zero, (0, 1, 2) if mode != "two" else (0, zero)), Gates(0, (0, 1))]
    weights = [w.detach().clone() for w in made.model.parameters()]
    made.architecture_step(images, labels, gates, mode)
    assert torch.equal(made.alphas[0], before[0]) and not made.adam.state.get(made.alphas[0])
    assert not torch.equal(made.alphas[1], before[1])
    assert all(torch.equal(a, b) for a, b in zip(weights, made.model.parameters(), strict=True))
    assert all(w.grad is None for w in made.model.parameters())


@pytest.mark.slow
def test_two_frameworks_make_the_same_search() -> None:
    """And no inactive weight or momentum moves; the faults of the control show in both claims."""
    found = checks.frameworks(3)
    assert found["twin"] < 1e-9 and found["untouched"] == {"torch": 0, "jax": 0}


def test_expected_cost_is_the_mean_over_networks() -> None:
    made, *_ = tiny_search()
    of = [len(place.candidates) for place in made.space.places]
    ps = [softmax(alpha.detach().numpy()) for alpha in made.alphas]
    want = sum(
        math.prod(p[j] for p, j in zip(ps, picks, strict=True)) * made.cost.total(picks)
        for picks in itertools.product(*map(range, of))
    )
    gates = fixed(made.space, (0, 0))
    assert made.expected(gates).item() == pytest.approx(want, rel=1e-12)
    # dE/dp_j = F(o_j): the gradient of alpha is p_i (F_i - E).
    gradient = torch.autograd.grad(made.expected(gates), made.alphas)[0].numpy()
    np.testing.assert_allclose(gradient, ps[0] * (made.cost.of[0] - ps[0] @ made.cost.of[0]), rtol=1e-10)


@pytest.mark.parametrize("form", Form)
def test_objectives_rise_with_cost_and_equal_the_loss_at_the_reference(form: Form) -> None:
    objective = Objective(80.0, 0.3, form)
    scale = objective(1.0, 80.0)
    assert scale == pytest.approx(1.0 if form is Form.add_linear else 0.2)
    assert objective(1.0, 90.0) > scale > objective(1.0, 70.0)
    if form is Form.mul_log:
        assert objective(2.0, 100.0) == pytest.approx(0.2 * 2.0 * (math.log(100) / math.log(80)) ** 0.3)
    with pytest.raises(ValueError, match="reference is 1"):
        Objective(1.0, 0.1)


def test_reinforce_does_not_drift_on_a_constant_reward_and_climbs_otherwise() -> None:
    rng, step = np.random.default_rng(0), Reinforce()
    alphas = [np.zeros(3), np.zeros(2)]
    for _ in range(5):
        picks = np.stack([rng.integers(3, size=10), rng.integers(2, size=10)], 1)
        assert all(np.abs(g).max() < 1e-12 for g in step.gradients(alphas, picks, np.full(10, 0.7)))
    for _ in range(300):
        picks = np.stack([rng.choice(len(a), 10, p=softmax(a)) for a in alphas], 1)
        gradients = step.gradients(alphas, picks, (picks[:, 0] == 2) + 0.5 * (picks[:, 1] == 0))
        alphas = [a - 0.3 * g for a, g in zip(alphas, gradients, strict=True)]
    assert softmax(alphas[0])[2] > 0.8 and softmax(alphas[1])[0] > 0.8
    assert reward(0.5, 160.0, 80.0) == pytest.approx(0.5 * 2**-0.1)


@settings(max_examples=3)
@given(seeds)
def test_search_of_a_separable_loss_finds_what_the_knapsack_does(rng: np.random.Generator) -> None:
    """Losses that add over places: the gradient is exact, so descending it must end at the best network of its own cost."""
    values, price = [rng.normal(size=4) for _ in range(3)], Cost(1.0, tuple(rng.uniform(0, 3, 4) for _ in range(3)), "ms")
    alphas = [torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in values]
    adam = torch.optim.Adam(alphas, 0.2, betas=(0.0, 0.999))
    for _ in range(150):
        total = torch.zeros((), dtype=torch.float64)
        for alpha, own, spent in zip(alphas, values, price.of, strict=True):
            gates = sample(alpha.detach().numpy(), "full_v2", rng)
            operations = [lambda x, v=v: v * x for v in own]
            total = total + mixed_op(torch.ones(1, dtype=torch.float64), alpha, operations, gates, "full_v2").sum()
            total = total + 0.5 * torch.softmax(alpha, 0) @ torch.from_numpy(spent)
        for alpha, gradient in zip(alphas, torch.autograd.grad(total, alphas), strict=True):
            alpha.grad = gradient
        adam.step()
    picks = tuple(int(alpha.argmax()) for alpha in alphas)
    wanted = tuple(int(np.argmin(own + 0.5 * spent)) for own, spent in zip(values, price.of, strict=True))
    assert picks == wanted
    best = small.knapsack(values, price, price.total(picks))
    assert sum(v[j] for v, j in zip(values, best, strict=True)) == pytest.approx(
        sum(v[j] for v, j in zip(values, picks, strict=True))
    )


@given(seeds)
def test_knapsack_equals_enumeration(rng: np.random.Generator) -> None:
    effects, price = [rng.normal(size=3) for _ in range(4)], Cost(0.5, tuple(rng.uniform(0, 2, 3) for _ in range(4)), "ms")
    limit = price.total([int(rng.integers(3)) for _ in range(4)])
    allowed = [p for p in itertools.product(range(3), repeat=4) if price.total(p) <= limit + 1e-9]
    want = min(sum(e[j] for e, j in zip(effects, p, strict=True)) for p in allowed)
    found = small.knapsack(effects, price, limit)
    assert found in allowed and sum(e[j] for e, j in zip(effects, found, strict=True)) == pytest.approx(want)


def test_every_network_is_scored_as_one_by_one() -> None:
    task = data.digits()
    model, part = SuperNet(task.space, 0).train(), (task.test[0][:16], task.test[1][:16])
    losses, costs, price = small.every_loss(model, part), small.every_cost(cost.pixel(task.space)), cost.pixel(task.space)
    assert losses.shape == costs.shape == (6, 6, 6, 6)
    for picks in ((0, 0, 0, 0), (5, 1, 3, 2)):
        alone, _ = search.score(model, fixed(task.space, picks), [tuple(map(torch.from_numpy, part))])
        assert losses[picks] == pytest.approx(alone, rel=1e-6) and costs[picks] == pytest.approx(price.total(picks))
    effects = small.single_effects(losses, (5, 1, 3, 2))
    assert effects[2][0] == pytest.approx(losses[5, 1, 0, 2] - losses[5, 1, 3, 2]) and effects[1][1] == 0


@pytest.mark.parametrize("method", Method)
def test_a_search_trains_parameters_that_no_other_part_sees(method: Method) -> None:
    config = dataclasses.replace(PRESETS["smoke"], steps=4, warm_up=2, method=method, batch=8, mode=Mode.two)
    task = data.digits()
    price = cost.pixel(task.space)
    start = search.warmed_up(task, config, price, 0)
    before = {name: w.clone() for name, w in start.state_dict().items()}
    found = search.run(start, task, config, price, 0, 0.1)
    assert all(torch.equal(w, before[name]) for name, w in start.state_dict().items())  # it works on a copy
    assert len(found.history) == 4 and found.history[0].shape == (2, 6) and len(found.expected) == 2
    assert np.abs(found.history[0][1] - 1 / 6).max() > 1e-3
    again = search.run(start, task, config, price, 0, 0.1)
    assert found.picks == again.picks and np.array_equal(found.expected, again.expected)
    train, held, test = (images.reshape(len(images), -1) for images, _ in (task.weights, task.alphas, task.test))
    sizes = len(train) + len(held) + len(test)
    assert sizes == 1797 and len(train) > len(held) > len(test) / 2


# Long runs.


class Memory:
    """A store that keeps the last state, and a search that is killed after so many of them."""

    def __init__(self, saves: int = 10**9) -> None:
        self.saves, self.kept = saves, None

    def load(self):
        return self.kept

    def save(self, arrays, meta) -> None:
        self.kept = ({name: np.array(each) for name, each in arrays.items()}, dict(meta))
        self.saves -= 1
        if not self.saves:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", Method)
def test_a_killed_search_ends_as_if_it_had_not_been(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "EVERY", 3)
    config = dataclasses.replace(PRESETS["smoke"], steps=8, warm_up=2, method=method, batch=8, mode=Mode.two)
    task = data.digits()
    price = cost.pixel(task.space)
    start = search.warmed_up(task, config, price, 0)
    whole = search.run(start, task, config, price, 0, 0.1)
    store = Memory(saves=2)
    with pytest.raises(KeyboardInterrupt):
        search.run(start, task, config, price, 0, 0.1, store)
    again = search.run(start, task, config, price, 0, 0.1, store)
    assert np.array_equal(whole.expected, again.expected)
    assert_trees_agree(from_torch(again.model), from_torch(whole.model), 0.0)


def test_imagenet_is_read_from_a_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    with pytest.raises(UserError, match="no ImageNet in"):
        monkeypatch.setenv("REPRODUCTION_DATA", str(tmp_path))
        imagenet.imagenet(0)
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 1)):
        for name in ("n01", "n02"):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(256, size=(40, 60, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    task = imagenet.imagenet(0)
    assert task.space.classes == 2 and (len(task.weights[1]), len(task.alphas[1]), len(task.test[1])) == (8, 4, 2)
    assert not {*task.weights[0].files} & {*task.alphas[0].files}
    images, labels = data.Batches(data.joined(task.weights, task.alphas), 4, (0,))(0)
    assert images.shape == (4, 224, 224, 3) and images.dtype == np.float32 and set(labels) <= {0, 1}
    same, _ = data.Batches(data.joined(task.weights, task.alphas), 4, (0,))(0)
    assert np.array_equal(images, same)
    assert task.test[0][0:2].shape == (2, 224, 224, 3) and task.test[1].tolist() == [0, 1]
