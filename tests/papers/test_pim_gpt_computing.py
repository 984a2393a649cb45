"""The machine's numbers: series, the memory image that computes, the closed form in both frameworks, the baselines."""

import dataclasses
import itertools

import jax
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.transformer_torch import TransformerLM
from common.models.weights import initial_weights, to_torch
from papers.pim_gpt import baseline, cost, cost_jax, cost_torch, published, series
from papers.pim_gpt.computing import SMALL, small_model
from papers.pim_gpt.functional import Decoder, Memory, rounded
from papers.pim_gpt.layout import Layout, Options
from papers.pim_gpt.machine import Machine, Timing
from papers.pim_gpt.program import token
from papers.pim_gpt.simulator import simulate
from papers.pim_gpt.sweep import machines

pytestmark = pytest.mark.xdist_group("pim_gpt")

QUIET = Machine(timing=Timing(refresh_interval=0))


@pytest.mark.parametrize(
    ("mine", "exact", "points", "bound"),
    [
        (series.exp, mpmath.exp, np.linspace(-86, 87, 400), 4e-6),
        (series.reciprocal, lambda x: 1 / x, np.r_[-np.geomspace(1e-30, 1e30, 200), np.geomspace(1e-30, 1e30, 200)], 1e-6),
        (series.rsqrt, lambda x: 1 / mpmath.sqrt(x), np.geomspace(1e-36, 1e36, 400), 1e-6),
    ],
)
def test_series_against_mpmath(mine, exact, points, bound):
    points = points.astype(np.float32)
    want = [exact(mpmath.mpf(float(x))) for x in points]
    got = mine(points)
    assert max(abs(float((mpmath.mpf(float(g)) - w) / w)) for g, w in zip(got, want, strict=True)) < bound


def test_series_at_their_ends():
    assert series.exp(np.float32([-np.inf, -1000, 0])).tolist() == [0, 0, 1]
    assert np.isfinite(series.exp(np.float32([1000])))
    x = np.linspace(-30, 30, 4001).astype(np.float32)
    t = torch.from_numpy(x).double()
    assert np.abs(series.tanh(x) - np.tanh(x.astype(np.float64))).max() < 4e-6
    assert np.abs(series.silu(x) - torch.nn.functional.silu(t).numpy()).max() < 4e-5
    assert np.abs(series.gelu(x) - torch.nn.functional.gelu(t, approximate="tanh").numpy()).max() < 4e-5
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * 9
    assert np.abs(series.softmax(rows) - torch.softmax(torch.from_numpy(rows).double(), -1).numpy()).max() < 4e-6
    norm = series.normalise(rows, np.ones(64, np.float32), None, True, 1e-5)
    assert np.abs(norm - torch.nn.functional.layer_norm(torch.from_numpy(rows), (64,)).numpy()).max() < 1e-5


def test_fewer_terms_are_worse():
    x = np.linspace(-1, 1, 101).astype(np.float32)
    errors = [np.abs(series.exp(x, terms) / np.exp(x.astype(np.float64)) - 1).max() for terms in (2, 3, 4, 5, 6)]
    assert all(a > 5 * b for a, b in itertools.pairwise(errors))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 150), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_a_product_from_the_memory_image(outputs, inputs, packed, inside, seed):
    """The instructions of one matrix, executed, against NumPy: any shape, padding included."""
    machine = Machine(channels=2, banks=4, row=64, buffer=64, rows=4096, timing=Timing(refresh_interval=0))
    architecture = dataclasses.replace(
        small_model(False), width=inputs, hidden=outputs, positions="none", heads=1, kv_heads=1, vocabulary=3
    )
    layout = Layout(machine, architecture, Options(tokens=4, packed=packed, chunks_inside=inside))
    rng = np.random.default_rng(seed)
    matrix, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), (inputs,)))
    memory = Memory(layout, exact=True)
    memory.store(layout, "0.up", matrix)
    program = token(layout, 0)
    phase = next(each for each in program.phases if each.name == "up")
    code = program.code[phase.first : phase.last]
    mapping = layout.matrices["0.up"]
    found = memory.run(code[code[:, 0] != 4], [x], mapping.rounds)
    got = found.transpose(0, 2, 1).reshape(-1)[:outputs]
    assert np.abs(got - matrix.astype(np.float64) @ x).max() < 1e-4


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("options", [{}, {"packed": False}, {"chunks_inside": True}])
def test_every_layout_computes_the_model(gated, options):
    """Several slots of keys, several chunks of the buffer, several rows of values."""
    architecture = small_model(gated)
    machine = Machine(channels=2, banks=4, row=32, buffer=32, rows=4096)
    weights = {name: rounded(value * 4) if value.ndim > 1 else value for name, value in initial_weights(architecture, 1).items()}
    words = np.random.default_rng(2).integers(0, architecture.vocabulary, 45)
    got = Decoder(Layout(machine, architecture, Options(tokens=64, **options)), weights, exact=True).generate(words)
    model = TransformerLM(architecture, dtype=torch.float64)
    to_torch(model, weights)
    with torch.no_grad():
        want = model(torch.from_numpy(words)[None])[0].numpy()
    # The ordinary GELU is not the tanh form.
    assert np.abs(got - want).max() < (2e-5 if gated else 4e-3) * np.abs(want).max()


def test_a_wrong_place_shows():
    weights = initial_weights(SMALL, 0)
    words = np.arange(6)
    right, wrong = (Decoder(Layout(Machine(), SMALL, Options(tokens=64)), weights, exact=True) for _ in range(2))
    mapping = wrong.layout.matrices["0.down"]
    image = wrong.memory.image[:, :, mapping.base : mapping.base + mapping.rows]
    image[:] = image[..., ::-1].copy()
    assert np.abs(right.generate(words) - wrong.generate(words)).max() > 0.01


def test_what_the_decoder_refuses():
    weights = initial_weights(SMALL, 0)
    with pytest.raises(ValueError, match="naive layout"):
        Decoder(Layout(Machine(), SMALL, Options(tokens=64, value_rows=True)), weights)
    with pytest.raises(ValueError, match="the mapping has room for"):
        Decoder(Layout(Machine(), SMALL, Options(tokens=64)), {**weights, "embedding.weight": np.zeros((3, 3))})
    decoder = Decoder(Layout(Machine(), SMALL, Options(tokens=2)), weights)
    with pytest.raises(ValueError, match="outside the 2 tokens"):
        decoder.generate(np.arange(3))


def test_rounding_is_to_nearest_even():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert np.array_equal(rounded(x), torch.from_numpy(x).bfloat16().float().numpy())


def test_closed_form_on_random_machines():
    rng = np.random.default_rng(7)
    for machine in machines(8, 7):
        architecture = published.MODELS[str(rng.choice(["GPT2-small", "GPT2-medium"]))]
        position = int(rng.integers(0, 1024))
        want = simulate(token(Layout(machine, architecture), position), machine).finish
        got = float(cost_torch.latency(cost.shape(architecture), position, cost.design(machine))["total"])
        assert got == pytest.approx(want, rel=0.03), machine


def test_closed_form_in_both_frameworks():
    """Every part, over models, positions and machines at once; values to 1e-10, and the slope in a machine's bandwidth."""
    names = list(published.MODELS)
    drawn = [cost.design(each) for each in machines(len(names), 1)]
    shapes, positions = [cost.shape(published.MODELS[name]) for name in names], np.arange(0.0, 1024, 100)

    def wide(rows, convert):
        return type(rows[0])(*(column[:, None] for column in cost.stacked(rows, convert)))

    want = cost_torch.latency(wide(shapes, torch.tensor), positions, wide(drawn, torch.tensor))
    with jax.enable_x64(True):
        got = cost_jax.latency(wide(shapes, jax.numpy.asarray), positions, wide(drawn, jax.numpy.asarray))
        for name, value in want.items():
            np.testing.assert_allclose(*np.broadcast_arrays(np.asarray(got[name]), value.numpy()), rtol=1e-10)
    assert want["total"].shape == (8, 11)
    assert bool((want["total"].diff(dim=1) >= 0).all())
    assert float(want["total"].min()) > 0


def test_baselines_are_fitted_on_one_model_each():
    architecture = published.MODELS["GPT2-small"]
    gpu, cpu = baseline.gpu(architecture, 0.015, 1024), baseline.cpu(architecture, 0.1, 1024)
    assert gpu.seconds(architecture, 1024) == pytest.approx(0.015)
    assert cpu.seconds(architecture, 1024) == pytest.approx(0.1)
    # Bytes by hand: blocks and head once, half the keys and values of 1024 positions.
    read = 12 * 12 * 768**2 + 50257 * 768 + 2 * 12 * 768 * 512.5
    assert gpu.bandwidth * (0.015 - 12 * gpu.launch) == pytest.approx(2 * read)
    assert baseline.without_launch(gpu).seconds(architecture, 1024) == pytest.approx(2 * read / gpu.bandwidth)
