"""Libraries as oracles: torch's pipeline schedules, DTensor's tensor parallelism, and JAX over every layout."""

import numpy as np
import pytest
import torch
from torch import nn

from common.distributed import Group, Ranks, on_devices
from papers.megatron_lm import model_jax, peers, ranks, reference
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.schedule import Kind, generate
from papers.megatron_lm.shape import Shape, cut, initial_weights
from papers.megatron_lm.trainer import Options

# Each of these loads a library that takes seconds in every process, or compiles for as long.
pytestmark = [pytest.mark.xdist_group("megatron_lm"), pytest.mark.slow]

SHAPE = Shape(vocabulary=130, width=16, depth=4, heads=4, context=12)
BATCHES = [np.random.default_rng(i).integers(0, SHAPE.vocabulary, (8, 10)) for i in range(2)]


@pytest.fixture(scope="module")
def four():
    with Ranks(4, timeout=300.0) as found:
        yield found


def library_order(group: Group, kind, microbatches, chunks):
    """The order of passes that torch's schedule gives to this rank: (forward, microbatch, stage)."""
    from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B

    stages = [
        PipelineStage(peers.Dozing((0.0, 0.0)), chunk * group.size + group.rank, group.size * chunks, torch.device("cpu"))
        for chunk in range(chunks)
    ]
    order = ScheduleInterleaved1F1B(stages, microbatches, nn.functional.mse_loss).pipeline_order[group.rank]
    return [
        (each.computation_type.name == "FORWARD", each.microbatch_index, each.stage_index) for each in order if each is not None
    ]


@pytest.mark.parametrize(("microbatches", "chunks"), [(4, 2), (8, 2), (8, 3), (12, 4)])
def test_torch_has_the_same_schedule(four, microbatches, chunks):
    found = four.run(library_order, Kind.interleaved, microbatches, chunks)
    for rank, ops in enumerate(generate(Kind.interleaved, 4, microbatches, chunks)):
        assert found[rank] == [(op.forward, op.microbatch, op.chunk * 4 + rank) for op in ops]


@pytest.mark.parametrize("sleeps", [(1e-3, 2e-3), None])
def test_torchs_engine_finds_the_same_gradients(four, sleeps):
    for _, _, error in four.run(peers.compare, sleeps, 8, 2, 1):
        assert error <= 1e-6


def library_layer(group: Group, weights, x):
    """A feed-forward layer that DTensor splits, and its gradients; the hidden layer's shard and the input."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    up, down = nn.Linear(16, 64, dtype=torch.float64), nn.Linear(64, 16, dtype=torch.float64)
    with torch.no_grad():
        for layer, name in ((up, "up"), (down, "down")):
            layer.weight.copy_(weights[f"{name}.weight"])
            layer.bias.copy_(weights[f"{name}.bias"])
    whole = nn.Sequential(up, nn.GELU(), down)
    parallelize_module(whole, init_device_mesh("cpu", (group.size,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = x.clone().requires_grad_()
    y = whole(x)
    y.square().sum().backward()
    return y.detach(), x.grad, up.weight.grad.to_local(), down.weight.grad.to_local()


def our_layer(group: Group, weights, x):
    from common.distributed.differentiable import copy_to
    from papers.megatron_lm.layers_torch import Column, Row

    up = Column((64 // group.size, 16), dtype=torch.float64)
    down = Row(16, 64 // group.size, group, dtype=torch.float64)
    with torch.no_grad():
        for layer, name in ((up, "feed_forward.up"), (down, "feed_forward.down")):
            for kind in ("weight", "bias"):
                part = weights[f"{name.split('.')[1]}.{kind}"].numpy()
                getattr(layer, kind).copy_(torch.from_numpy(cut(f"blocks.0.{name}.{kind}", part, group.size, group.rank).copy()))
    x = x.clone().requires_grad_()
    y = down(nn.functional.gelu(up(copy_to(x, group))))
    y.square().sum().backward()
    return y.detach(), x.grad, up.weight.grad, down.weight.grad


def test_dtensor_splits_layers_alike(four):
    sizes = {"up.weight": (64, 16), "up.bias": (64,), "down.weight": (16, 64), "down.bias": (16,)}
    weights = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    for ours, theirs in zip(four.run(our_layer, weights, x), four.run(library_layer, weights, x), strict=True):
        for got, want in zip(ours, theirs, strict=True):
            assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("t", "p", "d", "v"), [(2, 2, 2, 1), (2, 2, 2, 2), (1, 4, 2, 1), (4, 2, 1, 2), (1, 1, 8, 1), (4, 1, 2, 1)], ids=str
)
def test_the_mesh_trains_as_one_process_does(t, p, d, v):
    layout = Layout(tensor=t, pipeline=p, data=d, chunks=v)
    batches = [np.random.default_rng(i).integers(0, SHAPE.vocabulary, (8, 10)) for i in range(2)]
    losses, found = on_devices(
        model_jax.train, 8, SHAPE, layout, initial_weights(SHAPE, 0), batches, 1e-3, 0.1, 0.3, timeout=300.0
    )
    weights = {name: torch.from_numpy(each).requires_grad_() for name, each in initial_weights(SHAPE, 0).items()}
    assert losses == pytest.approx(
        reference.train(weights, SHAPE, [torch.from_numpy(b) for b in batches], 1e-3, 0.1, 0.3), rel=1e-9
    )
    for name, each in weights.items():
        want = each.detach().numpy()
        assert np.abs(found[name] - want).max() <= 1e-9 * np.abs(want).max(), name


def test_float32_on_the_grid_is_close(four):
    """The same step in float32: losses to 1e-5 of float64's."""
    layout = Layout(tensor=2, pipeline=2, chunks=2, microbatch=2)
    found = [
        four.run(ranks.losses, SHAPE, layout, 0, BATCHES, Options(dtype=kind))[0][0] for kind in (torch.float32, torch.float64)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
