"""Formulas, simulators and tiles: against closed forms, each other, and layers that are not cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from common.agreement import relative_error
from common.command_line import main
from papers.zero_infinity import allocator, bandwidth, capacity, fragments, memory, pipeline_sim, published
from papers.zero_infinity.capacity import Tier
from papers.zero_infinity.config import PRESETS
from papers.zero_infinity.pipeline_sim import Costs
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.tiling import edges
from papers.zero_infinity.tiling_jax import TiledLinear as TiledJax
from papers.zero_infinity.tiling_torch import TiledLinear

pytestmark = pytest.mark.xdist_group("zero_infinity")


def test_formulas_in_both_frameworks():
    """One text; gradients too, as a designer would ask for them."""
    layers, hidden, heads = (np.array(column, float) for column in zip(*published.TABLE.values(), strict=True))

    def everything(layers, hidden, heads):
        return (
            memory.model_states(layers, hidden)
            + memory.checkpoints(layers, hidden, 32, 1024)
            + memory.activations(layers, hidden, heads, 32, 1024)
            + memory.state_working(hidden)
            + memory.activation_working(hidden, heads, 2, 1024)
        ) * bandwidth.efficiency(bandwidth.of_checkpoints(hidden), 2e9, 70e12)

    want = everything(layers, hidden, heads)
    tensors = [torch.from_numpy(each).requires_grad_() for each in (layers, hidden, heads)]
    value = everything(*tensors)
    value.sum().backward()
    assert relative_error(value.detach().numpy(), want) < 1e-14
    with jax.enable_x64(True):
        arrays = [jnp.asarray(each) for each in (layers, hidden, heads)]
        assert relative_error(jax.jit(everything)(*arrays), want) < 1e-14
        gradients = jax.jit(jax.grad(lambda *a: everything(*a).sum(), argnums=(0, 1, 2)))(*arrays)
        for got, tensor in zip(gradients, tensors, strict=True):
            assert relative_error(got, tensor.grad.numpy()) < 1e-9


def test_memory_by_hand():
    assert memory.parameters(2, 10) == 2400 and memory.model_states(2, 10) == 48_000
    assert memory.checkpoints(6, 10, 3, 5, every=2) == 2 * 3 * 5 * 10 * 3
    assert memory.state_working(10) == 1600
    assert memory.activation_working(10, 2, 3, 5) == 2 * 3 * 5 * (160 + 20)


@given(st.floats(0.01, 0.99), st.floats(1, 1e6), st.floats(1e9, 1e15))
def test_bandwidth_is_the_inverse_of_efficiency(share, intensity, peak):
    assert bandwidth.efficiency(intensity, bandwidth.bandwidth_for(share, intensity, peak), peak) == pytest.approx(share)


def test_intensities_are_operations_over_bytes():
    """From the passes and bytes that they stand for."""
    layers, hidden, batch, seq = 7, 64, 3, 128
    work, p = bandwidth.operations(layers, hidden, batch, seq), memory.parameters(layers, hidden)
    assert work / (2 * 4 * p) == bandwidth.of_parameters(batch, seq)
    assert work / (2 * 16 * p) == bandwidth.of_states(batch, seq)
    assert work / (2 * memory.checkpoints(layers, hidden, batch, seq, 2)) == bandwidth.of_checkpoints(hidden, 2)


# The pipeline

TIMES = st.floats(0, 3)


@given(st.builds(Costs, *[TIMES] * 8, st.integers(1, 6)))
def test_the_recurrence_is_the_schedule(costs):
    assert pipeline_sim.iteration(costs) == pytest.approx(pipeline_sim.timeline(costs).finish)
    assert pipeline_sim.iteration(costs) <= pipeline_sim.iteration(costs, overlap=False) + 1e-9


def _simpy(costs):
    """The same iteration as processes: stages in order, a window of three operators."""
    import simpy

    world, n = simpy.Environment(), 3 * costs.layers
    done = {hop: [world.event() for _ in range(n)] for hop in ("read", "copy", "gather", "compute", "reduce", "leave", "write")}

    def stage(hop, seconds, waits, only=lambda i: True):
        for i in range(n):
            if only(i):
                for other, j in waits(i):
                    if j >= 0:
                        yield done[other][j]
                yield world.timeout(seconds(i))
                done[hop][i].succeed()

    kind = [pipeline_sim._kind(i, costs.layers) for i in range(n)]

    def backward(i):
        return kind[i] == 2

    world.process(stage("read", lambda i: costs.read, lambda i: [("compute", i - 4)]))
    world.process(stage("copy", lambda i: costs.copy, lambda i: [("read", i), ("compute", i - 3)]))
    world.process(stage("gather", lambda i: costs.gather, lambda i: [("copy", i), ("compute", i - 2)]))
    world.process(stage("compute", lambda i: pipeline_sim.PASSES[kind[i]] * costs.forward, lambda i: [("gather", i)]))
    world.process(stage("reduce", lambda i: costs.reduce, lambda i: [("compute", i)], backward))
    world.process(stage("leave", lambda i: costs.leave, lambda i: [("reduce", i)], backward))
    world.process(stage("write", lambda i: costs.write, lambda i: [("leave", i)], backward))
    world.run()
    return world.now + costs.optimizer


def test_the_recurrence_is_simpy():
    rng = np.random.default_rng(0)
    for layers in (1, 2, 5):
        costs = Costs(*rng.uniform(0, 2, 8), layers)
        assert pipeline_sim.iteration(costs) == pytest.approx(_simpy(costs))


def test_the_recurrence_in_both_frameworks():
    columns = np.random.default_rng(0).uniform(0, 2, (8, 50))
    want = [pipeline_sim.iteration(Costs(*column, 3)) for column in columns.T]
    got = pipeline_sim.iteration(Costs(*torch.from_numpy(columns), 3), torch.maximum)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
    with jax.enable_x64(True):
        got = jax.jit(lambda c: pipeline_sim.iteration(Costs(*c, 3), jnp.maximum))(jnp.asarray(columns))
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_limits_of_the_pipeline():
    """A free link leaves the computation; a slow hop sets the pace."""
    fast = Costs(0, 0, 0, 1.0, 0, 0, 0, 5.0, 10)
    assert pipeline_sim.iteration(fast) == 4 * 10 + 5
    for hop in ("read", "copy", "gather"):
        slow = dataclasses.replace(fast, **{hop: 7.0})
        assert pipeline_sim.iteration(slow) == pytest.approx(30 * 7 + 2 + 5)


def test_the_simulator_can_disagree():
    """Speed-up is no constant: it falls below the nodes' where nothing but the network grows slower with them."""
    model = published.TRAINED["1T"]

    def gain(**options):
        speed = [
            pipeline_sim.teraflops(model, nodes, options.get("batch", 5), **{k: v for k, v in options.items() if k != "batch"})
            for nodes in (4, 32)
        ]
        return 8 * speed[1] / speed[0]

    assert gain() > 8.5 > 8 > gain(aggregate=False)
    assert gain(batch=0.01, tier=Tier.gpu) < 8  # all that is left is the network
    assert gain(batch=1) > gain(batch=5)  # the smaller the batch, the more the optimizer's step weighs


# Capacity and allocator


def test_capacity_is_monotone_and_meets_its_own_bound():
    assert capacity.largest(1, Tier.nvme) < capacity.largest(2, Tier.nvme) < capacity.largest(32, Tier.nvme)
    assert capacity.largest(32, Tier.cpu) < capacity.largest(32, Tier.nvme)
    assert memory.STATE_BYTES * capacity.largest(32, Tier.nvme) <= 32 * published.NVME
    # The smallest number of GPUs for a model can hold it, and one less cannot.
    model = published.TABLE["0.50T"]
    gpus, p = capacity.gpus_of_3d(model), memory.parameters(model.layers, model.hidden)
    assert capacity.largest_of_3d(gpus) == pytest.approx(p, rel=0.02)
    assert not capacity.fits(published.TABLE["101.47T"], 32, Tier.nvme)["working memory"]
    assert capacity.fits(published.TABLE["101.47T"], 200, Tier.nvme, tiles=64)["working memory"]


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 20))
def test_first_fit_against_a_search_of_all_holes(sizes, piece):
    free = allocator.FirstFit(100, piece)
    for size in sizes:
        before = list(free.holes)
        possible = any(hole >= size for hole in before)
        assert free.take(size) == possible
        assert sum(before) - sum(free.holes) == (size if possible else 0)
        assert all(hole <= piece for hole in free.holes)


def test_allocator_refuses():
    with pytest.raises(ValueError, match="0 < piece"):
        allocator.FirstFit(10, 11)
    with pytest.raises(ValueError, match="tiles is 0"):
        allocator.layer_fits(8, 0)


def test_monotone_notices():
    assert allocator.monotone({(1, 1): True, (2, 1): False, (2, 2): True, (1, 2): True})
    assert not allocator.monotone({(1, 1): False, (2, 1): True})
    assert not allocator.monotone({(1, 1): True, (1, 2): False})


def test_tiles_decide_in_a_fragmented_arena():
    """One size below, at and above a piece; the whole table is measured by the run."""
    assert fragments.trains(64, 1) and not fragments.trains(128, 1) and fragments.trains(128, 4) and not fragments.trains(128, 2)


# Tiles


@given(st.integers(1, 50), st.data())
def test_edges_are_even(features, data):
    splits = data.draw(st.integers(1, features))
    sizes = np.diff(edges(features, splits))
    assert len(sizes) == splits and sizes.sum() == features and sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("inputs", "outputs", "i", "o"), [(8, 12, 2, 3), (7, 5, 3, 5), (7, 5, 7, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_tiles_are_the_layer(inputs, outputs, i, o, bias):
    torch.manual_seed(0)
    whole = torch.nn.Linear(inputs, outputs, bias, dtype=torch.float64)
    tiled = TiledLinear.of(whole, i, o)
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    results = []
    for layer in (whole, tiled):
        each = x.clone().requires_grad_()
        out = layer(each)
        (out * torch.arange(out.numel(), dtype=torch.float64).view(out.shape)).sum().backward()
        results.append((out.detach(), each.grad))
    for got, want in zip(results[1], results[0], strict=True):
        assert relative_error(got.numpy(), want.numpy()) < 1e-12
    rows = [torch.cat([tile.weight.grad for tile in row], 1) for row in tiled.tiles]
    assert relative_error(torch.cat(rows).numpy(), whole.weight.grad.numpy()) < 1e-12
    biased = [tile.bias is not None for row in tiled.tiles for tile in row]
    assert biased == ([False] * (i - 1) + [bias]) * o  # only the last part of the input adds it


def test_tiles_in_jax_are_the_layer():
    with jax.enable_x64(True):
        whole = nnx.Linear(7, 5, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        whole.bias[...] = jnp.arange(5.0)
        tiled = TiledJax.of(whole, 3, 2)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7)))

        @jax.jit
        def both(x):
            return [jax.value_and_grad(lambda x, layer=layer: (layer(x) ** 3).sum())(x) for layer in (tiled, whole)]

        (value, slope), (want_value, want_slope) = both(x)
        assert relative_error(value, np.asarray(want_value)) < 1e-12
        assert relative_error(slope, np.asarray(want_slope)) < 1e-12
        torch_layer = torch.nn.Linear(7, 5, dtype=torch.float64)
        with torch.no_grad():
            torch_layer.weight.copy_(torch.from_numpy(np.array(whole.kernel[...]).T))
            torch_layer.bias.copy_(torch.from_numpy(np.array(whole.bias[...])))
        other = TiledLinear.of(torch_layer, 3, 2)(torch.from_numpy(np.array(x)))
        assert relative_error(tiled(x), other.detach().numpy()) < 1e-12


@pytest.mark.parametrize(
    ("i", "o", "text"), [(9, 1, "in_splits is 9 for 8"), (1, 5, "out_splits is 5 for 4"), (0, 1, "in_splits is 0")]
)
def test_tiles_refuse(i, o, text):
    with pytest.raises(ValueError, match=text):
        TiledLinear(8, 4, in_splits=i, out_splits=o)
    with pytest.raises(ValueError, match=text):
        TiledJax(8, 4, in_splits=i, out_splits=o, rngs=nnx.Rngs(0))


# The rule


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_rule_is_torchs_adamw_and_optax(decay):
    import optax

    steps = 3

    rng = np.random.default_rng(steps)
    start, gradients = rng.normal(size=9), rng.normal(size=(steps, 9))
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.AdamW([parameter], 1e-2, (0.9, 0.99), 1e-8, decay)
    own, mean, square = torch.from_numpy(start.copy()), torch.zeros(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    rule = Adam(1e-2, 0.9, 0.99, 1e-8, decay)
    with jax.enable_x64(True):
        other, peer = jnp.asarray(start), optax.adamw(1e-2, 0.9, 0.99, 1e-8, weight_decay=decay)
        state = peer.init(other)
        advance = jax.jit(peer.update)
        for step, gradient in enumerate(gradients, 1):
            parameter.grad = torch.from_numpy(gradient.copy())
            optimizer.step()
            rule.update(own, torch.from_numpy(gradient), mean, square, step)
            change, state = advance(jnp.asarray(gradient), state, other)
            other = optax.apply_updates(other, change)
        assert relative_error(own.numpy(), parameter.detach().numpy()) < 1e-14
        assert relative_error(other, own.numpy()) < 1e-12


# The command line


def test_configurations_refuse():
    for change, text in (
        ({"ranks": 1}, "at least 2"),
        ({"width": 33}, "multiples of 32"),
        ({"batch": 3}, "even"),
        ({"model": "7B"}, "10B"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(PRESETS["smoke"], **change)


def test_the_paper_preset_is_refused_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("common.runner.gpu", lambda: None)
    assert main("zero_infinity", ["preset=paper"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
