"""The space, the counts, the super-net and its masks, against independent oracles."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy import stats

from common.models.weights import from_torch, to_torch
from common.nas import network_torch
from common.nas.counting import count_torch
from papers.fbnet import count, model_jax, model_torch, published, twin
from papers.fbnet.config import PRESETS, Config
from papers.fbnet.model_torch import StochasticSuperNet, child, gumbel_softmax, latency_of, loss_of
from papers.fbnet.sample import sample, uniform
from papers.fbnet.space import CODES, Place, Space, block, parse, published_net, show
from papers.fbnet.supernet import gumbel, initial_weights

pytestmark = pytest.mark.xdist_group("fbnet")

TINY = Space(size=4, classes=3, stages=((4, 1, 1), (6, 1, 2)), stem=4, last=5, channels=2, stem_stride=1)
DRAWS = 100_000


def images(batch=3, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((batch, TINY.size, TINY.size, TINY.channels))).to(dtype)


def tiny(seed=1):
    return StochasticSuperNet(TINY, seed, dtype=torch.float64)


def one_hot(*codes):
    return torch.nn.functional.one_hot(torch.tensor([CODES.index(code) for code in codes]), len(CODES)).double()


# The space


@pytest.mark.parametrize("name", list(published.ARCHITECTURES))
def test_published_architectures_are_read_and_shown(name):
    space = Space.of(name)
    codes = parse(published.ARCHITECTURES[name], space)
    assert len(codes) == 22 and show(codes, space) == published.ARCHITECTURES[name]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s " * 21, "21 codes; the space has 22 layers"),
        ("s " * 23, "23 codes"),
        ("3_1 3_6 7_6 " + "s " * 19, "code 3 of the architecture is '7_6'; wanted one of 3_1"),
        ("s " * 21 + "3_6g", "code 22 of the architecture is '3_6g'"),
        ("", "0 codes"),
    ],
)
def test_bad_architectures_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text, Space.of("A"))


def test_skip_is_the_identity_only_where_shapes_stay():
    assert block(Place(8, 8, 1, 4), "s") is None
    for place in (Place(8, 8, 2, 4), Place(8, 12, 1, 4)):
        layer = block(place, "s")
        assert (layer.kernel, layer.stride, layer.outputs, layer.activation) == (1, place.stride, place.outputs, "relu")
    # As the only choice of every layer, strides included, it still gives a net of the right shape.
    net = TINY.net(("s", "s"))
    assert child(net)(images(dtype=torch.float32)).shape == (3, TINY.classes) and len(net.layers) == 3


def test_nine_blocks_at_a_place():
    found = {code: block(Place(8, 8, 1, 4), code) for code in CODES}
    assert [(b.kernel, b.expand, b.groups) for b in found.values() if b] == [
        (3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1),
    ]  # fmt: skip
    assert all([name for name, _ in b.parts()] == ["expand", "depthwise", "project"] for b in found.values() if b)
    short = block(Place(8, 8, 1, 4), "3_1g", always_expand=False)
    assert [(name, part.groups) for name, part in short.parts()] == [("depthwise", 8), ("project", 2)]


# Counts


def test_counts_against_fvcore_and_what_is_built():
    from fvcore.nn import FlopCountAnalysis

    net, found = published_net("A", always_expand=False), count.costs()["A, zoo"]
    operators = FlopCountAnalysis(network_torch.Network(net).eval(), torch.zeros(1, 224, 224, 3)).unsupported_ops_warnings(False)
    assert operators.by_operator()["conv"] + operators.by_operator()["linear"] == found.macs
    model = network_torch.Network(published_net("iPhone X"), None, device="meta").eval()
    built, want = count_torch(model, torch.empty(1, 224, 224, 3, device="meta")), count.costs()["iPhone X"]
    assert (built.macs, built.parameters) == (want.macs, want.parameters)


def test_another_library_gives_C_5_57_million_parameters():
    assert round(count.costs()["C, zoo"].parameters / 1e6, 2) == 5.57


def test_count_prints_every_reading(capsys):
    count.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in count.READINGS) and f"{244_526_360:,}" in printed


# Masks


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_largest_entry_of_a_mask_is_drawn_with_softmax_of_the_logits(framework):
    theta = np.array([[1.5, 0.0, -1.0, 0.3, 2.0, 0.1, -0.5, 1.0, 0.7]])
    if framework == "torch":
        many = torch.from_numpy(theta).expand(DRAWS, 1, 9)
        masks = gumbel_softmax(many, 0.7, generator=torch.Generator().manual_seed(4)).numpy()
    else:
        many = jnp.broadcast_to(jnp.asarray(theta, jnp.float32), (DRAWS, 1, 9))
        masks = np.asarray(model_jax.gumbel_softmax(many, 0.7, key=jax.random.key(4)))
    np.testing.assert_allclose(masks.sum(-1), 1, atol=1e-5)
    seen = np.bincount(masks[:, 0].argmax(-1), minlength=9)
    want = DRAWS * np.exp(theta[0]) / np.exp(theta[0]).sum()
    assert stats.chisquare(seen, want).pvalue > 1e-3


def test_noise_drawn_outside_is_gumbel():
    drawn = gumbel((DRAWS,), np.random.default_rng(0))
    assert stats.kstest(drawn, "gumbel_r").pvalue > 1e-3


@given(st.integers(0, 1000), st.floats(0.05, 20))
def test_masks_agree_between_frameworks_and_with_the_definition(seed, tau):
    rng = np.random.default_rng(seed)
    theta, noise = rng.normal(size=(3, 9)), rng.gumbel(size=(5, 3, 9))
    whole = np.exp((theta + noise) / tau - ((theta + noise) / tau).max(-1, keepdims=True))
    want = whole / whole.sum(-1, keepdims=True)
    got = gumbel_softmax(torch.from_numpy(theta), tau, noise=torch.from_numpy(noise))
    np.testing.assert_allclose(got, want, atol=1e-12)
    with jax.enable_x64(True):
        theirs = model_jax.gumbel_softmax(jnp.asarray(theta), tau, noise=jnp.asarray(noise))
        np.testing.assert_allclose(theirs, want, atol=1e-12)


def test_masks_stay_finite_where_exponentials_would_not():
    theta = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    masks = gumbel_softmax(theta, 1e-3, noise=torch.zeros(1, 3))
    masks[0, 0].backward()
    assert masks.tolist() == [[1, 0, 0]] and torch.isfinite(theta.grad).all()


@pytest.mark.parametrize("tau", [0, -1.0, float("nan")])
def test_temperatures_that_are_none_are_refused(tau):
    with pytest.raises(ValueError, match="wanted a number above 0"):
        gumbel_softmax(torch.zeros(1, 9), tau)
    with pytest.raises(ValueError, match="wanted a number above 0"):
        model_jax.gumbel_softmax(jnp.zeros((1, 9)), tau, key=jax.random.key(0))


def test_jax_wants_noise_or_a_key():
    with pytest.raises(ValueError, match="neither noise nor key"):
        model_jax.gumbel_softmax(jnp.zeros((1, 9)), 1.0)


# The super-net


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("codes", [("3_6", "5_1g"), ("s", "s"), ("3_1g", "5_3")])
def test_cold_masks_give_the_single_path(codes, training):
    net = tiny().train(training)
    with torch.no_grad():
        net.theta.copy_(one_hot(*codes))
        masks = gumbel_softmax(net.theta, 1e-3, noise=torch.zeros(2, 9, dtype=torch.float64))
        torch.testing.assert_close(masks, one_hot(*codes), rtol=0, atol=1e-12)
        got, want = net(images(), masks), net.forward_path(images(), codes)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_single_path_is_the_child_net():
    codes = ("5_1g", "3_3")
    net, alone = tiny().eval(), child(TINY.net(codes), dtype=torch.float64).eval()
    weights = from_torch(net)
    names = {"layers.0": "first", "layers.3": "final"} | {
        f"layers.{place + 1}": f"layers.{place}.{CODES.index(code)}" for place, code in enumerate(codes)
    }
    mine = {}
    for name in from_torch(alone):
        start = next((each for each in names if name.startswith(f"{each}.")), "")
        mine[name] = weights[name.replace(start, names[start], 1) if start else name]
    to_torch(alone, mine)
    torch.testing.assert_close(alone(images()), net.forward_path(images(), codes), rtol=0, atol=1e-12)


def test_a_layer_is_the_weighted_sum_of_its_blocks():
    net, masks = tiny().eval(), torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = net.first(images().permute(0, 3, 1, 2))
        for layer, blocks in enumerate(net.layers):
            x = sum(masks[layer, i] * each(x) for i, each in enumerate(blocks))
        want = net.head(net.final(x).mean((2, 3)))
        torch.testing.assert_close(net(images(), masks), want, rtol=0, atol=1e-12)


def test_masks_for_each_image():
    net = tiny().eval()
    masks = torch.rand(3, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = net(images(), masks)
        for row in range(3):
            torch.testing.assert_close(got[row], net(images()[row : row + 1], masks[row])[0], rtol=0, atol=1e-12)
    x, shares = np.arange(12.0).reshape(3, 2, 2, 1), np.array([[1.0, 0.0], [0.5, 2.0], [3.0, 1.0]])
    blocks = [lambda x: x, lambda x: 10 * x]
    want = x * (shares @ [1.0, 10.0])[:, None, None, None]
    np.testing.assert_allclose(model_jax.mixed(blocks, jnp.asarray(x), jnp.asarray(shares)), want)
    np.testing.assert_allclose(model_jax.mixed(blocks, jnp.asarray(x), jnp.asarray(shares[1])), 20.5 * x)


def test_shuffled_outputs_are_those_of_the_unfused_block_with_its_norm_reordered():
    layer = block(Place(8, 12, 2, 6), "5_1g")
    mine = model_torch.build(layer, dtype=torch.float64).eval()
    plain = network_torch.build(layer, dtype=torch.float64).eval()
    rng = np.random.default_rng(0)
    weights = {name: rng.uniform(0.5, 1.5, shape) for name, shape in layer.shapes().items()}
    to_torch(mine, weights)
    order = np.arange(8).reshape(4, 2).T.ravel()  # place in the shuffled order of each output of the convolution
    to_torch(plain, {n: a[order] if n.startswith("expand.norm") else a for n, a in weights.items()})
    x = torch.from_numpy(rng.standard_normal((2, 8, 6, 6)))
    torch.testing.assert_close(mine(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_gradient_of_latency_in_closed_form(framework):
    """d LAT / d theta_k = m_k (t_k - sum_i m_i t_i) / tau, by layer."""
    rng = np.random.default_rng(3)
    theta, noise, table, tau = rng.normal(size=(4, 9)), rng.gumbel(size=(4, 9)), rng.uniform(1, 5, (4, 9)), 0.8
    if framework == "torch":
        given = torch.from_numpy(theta).requires_grad_()
        masks = gumbel_softmax(given, tau, noise=torch.from_numpy(noise))
        found = latency_of(masks, torch.from_numpy(table), 2.0)
        found.backward()
        m, got = masks.detach().numpy(), given.grad.numpy()
    else:
        with jax.enable_x64(True):

            def latency(theta):
                masks = model_jax.gumbel_softmax(theta, tau, noise=jnp.asarray(noise))
                return model_jax.latency_of(masks, jnp.asarray(table), 2.0), masks

            (found, m), got = jax.value_and_grad(latency, has_aux=True)(jnp.asarray(theta))
            m = np.asarray(m)
    assert float(found if framework == "jax" else found.detach()) == pytest.approx(2 + (m * table).sum(), rel=1e-12)
    np.testing.assert_allclose(got, m * (table - (m * table).sum(-1, keepdims=True)) / tau, rtol=0, atol=1e-12)


@pytest.mark.parametrize("latency", [1.0, 0.02, float("nan")])
def test_latencies_without_a_logarithm_above_0_are_refused(latency):
    with pytest.raises(ValueError, match="wanted milliseconds above 1: convert a table in seconds"):
        loss_of(torch.tensor(1.0), torch.tensor(latency), 0.2, 0.6)
    with pytest.raises(ValueError, match="wanted milliseconds"):
        model_jax.loss_of(jnp.asarray(1.0), jnp.asarray(latency), 0.2, 0.6)


def test_loss_is_that_of_the_paper():
    for ours, array in ((loss_of, torch.tensor), (model_jax.loss_of, jnp.asarray)):
        assert float(ours(array(1.3), array(20.0), 0.2, 0.6)) == pytest.approx(1.3 * 0.2 * np.log(20) ** 0.6, rel=1e-6)


def test_every_candidate_gets_its_gradient():
    net = tiny().train()
    masks = gumbel_softmax(net.theta, 1.0, noise=torch.zeros(2, 9, dtype=torch.float64))
    net(images(), masks).square().sum().backward()
    assert all(each.grad is not None for each in net.parameters()) and net.theta.grad.abs().min() > 0


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "wanted 1 or more"),
        ({"warm_epochs": 16}, "wanted less than the 16 epochs"),
        ({"architecture_share": 1.0}, "between 0 and 1"),
        ({"tau": 0.0}, "wanted tau > 0"),
        ({"seeds": []}, "a seed"),
        ({"twin_bits": 16}, "wanted 32 or 64"),
        ({"widths": [8]}, "one of each for each stage"),
        ({"widths": [], "layers": [], "strides": []}, "one stage or more"),
        ({"last": 0}, "sizes from 1"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_presets_are_the_sizes_they_say():
    assert PRESETS["paper"].space() == Space.of("B")
    assert [len(PRESETS[name].space().places) for name in ("smoke", "laptop", "paper")] == [4, 10, 22]
    small = PRESETS["laptop"].space()
    want = {4 * width for width, _, _ in small.stages}
    assert want == {width for width, _, _ in published.STAGES} - {352}


def test_random_nets_are_of_all_kinds():
    drawn = sample(uniform(22), 50, np.random.default_rng(0))
    assert {code for each in drawn for code in each.codes} == set(CODES)
    assert len({each.codes for each in drawn}) == 50
    assert all(each.log_probability == pytest.approx(-22 * np.log(9)) for each in drawn)


def test_the_twins_trajectory_moves_weights_and_logits():
    """Else their agreement would mean nothing."""
    start, end = initial_weights(twin.SPACE, 4), twin.by_torch(4)
    assert len({round(float(loss), 9) for loss in end["losses"]}) == len(twin.plan()) == 8
    assert np.abs(end["theta"]).max() > 0.05 and np.abs(end["head.weight"] - start["head.weight"]).max() > 1e-4
    assert [tau for tau, _ in twin.plan()] == sorted((tau for tau, _ in twin.plan()), reverse=True)
