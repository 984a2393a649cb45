"""Networks as data against what is built of them, counters against fvcore and torch's own, tables of latencies."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from common import UserError
from common.agreement import assert_trees_agree, relative_error
from common.allocations import Saved
from common.models.weights import _leaves, from_torch, torch_name
from common.nas import ConvNet, Convolution, InvertedResidual, LatencyTable, divisible, mobilenet_v2, network_jax, network_torch
from common.nas.counting import count_jax, count_torch, saved_jax

SMALL = ConvNet(
    layers=(
        Convolution(inputs=3, outputs=8, kernel=3, stride=2, activation="relu"),
        InvertedResidual(inputs=8, outputs=8, expand=1),
        InvertedResidual(inputs=8, outputs=8, expand=1, always_expand=True, groups=2, activation="relu"),
        InvertedResidual(inputs=8, outputs=12, kernel=5, stride=2, expand=3, groups=2, squeeze=2, activation="silu"),
        InvertedResidual(inputs=12, outputs=12, kernel=7, expand=2.5, groups=2, group_first=False),
        Convolution(inputs=12, outputs=20, activation="silu"),
    ),
    classes=5,
)


def torch_count(net: ConvNet, size: int) -> tuple[int, ...]:
    model = network_torch.Network(net, None, device="meta").eval()
    return count_torch(model, torch.empty(1, size, size, 3, device="meta"))


@pytest.mark.parametrize(
    ("width", "macs", "parameters"), [(1.0, 300_774_272, 3_504_872), (1.3, 509.37e6, 5.387e6), (1.4, 582e6, 6.11e6)]
)
def test_published_counts_of_mobilenet_v2(width: float, macs: float, parameters: float) -> None:
    found = mobilenet_v2(width).count(224, 224)
    assert found.macs == pytest.approx(macs, rel=0 if width == 1 else 1e-3)
    assert found.parameters == pytest.approx(parameters, rel=0 if width == 1 else 1e-3)


@pytest.mark.parametrize(("net", "size"), [(SMALL, 32), (SMALL, 17), (mobilenet_v2(0.35), 96)])
def test_closed_form_is_what_is_built(net: ConvNet, size: int) -> None:
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    want = net.count(size, size)
    assert torch_count(net, size) == want
    model = network_torch.Network(net, None, device="meta").eval()
    images = torch.empty(1, size, size, 3, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() == 2 * want.macs
    real = network_torch.Network(net).eval()
    images = torch.zeros(1, size, size, 3)
    by_operator = FlopCountAnalysis(real, images).unsupported_ops_warnings(False).by_operator()
    assert by_operator["conv"] + by_operator["linear"] == want.macs
    outputs = ActivationCountAnalysis(real, images).unsupported_ops_warnings(False).by_operator()
    assert outputs["conv"] + outputs["linear"] == want.activations
    traced = nnx.eval_shape(lambda: network_jax.Network(net, None))
    traced.eval()
    graph, state = nnx.split(traced)
    found = count_jax(lambda state, x: nnx.merge(graph, state)(x), state, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert (found.macs, found.activations) == (want.macs, want.activations)
    assert sum(map(np.prod, net.shapes().values())) - want.parameters == 2 * norms(net)


def norms(net: ConvNet) -> int:
    """Channels that are normalised: each has two running statistics, which are no parameters."""
    return sum(math.prod(shape) for name, shape in net.shapes().items() if name.endswith("running_mean"))


@pytest.mark.parametrize(("training", "own"), [(False, True), (True, False)])
def test_both_frameworks_compute_the_same_network(training: bool, own: bool) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(4, 16, 16, 3)), rng.integers(5, size=4)
    net = SMALL
    mine = network_torch.Network(net, 3, depthwise_torch if own else None, dtype=torch.float64).train(training)
    weights = from_torch(mine)
    loss = F.cross_entropy(mine(torch.from_numpy(images)), torch.from_numpy(labels))
    loss.backward()
    with jax.enable_x64(True):
        theirs = network_jax.Network(net, 3, depthwise_jax if own else None, jnp.float64)
        theirs.train() if training else theirs.eval()

        def loss_of(model: network_jax.Network) -> jax.Array:
            logits = model(jnp.asarray(images))
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[:, None], 1).mean()

        value, gradients = nnx.jit(nnx.value_and_grad(loss_of))(theirs)
        got = {torch_name(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
        layouts = {name: path[-1] for name, (path, _) in _leaves(theirs).items()}
    assert value.dtype == jnp.float64 and relative_error(value, loss.item()) < 1e-12
    want = {name: np.asarray(each.grad) for name, each in mine.named_parameters()}
    for name, array in got.items():
        if layouts[name] == "kernel":
            got[name] = array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    if training:  # a shift before another norm changes nothing: its gradient is rounding, and is compared with the others'
        assert set(got) == set(want)
        got, want = ({"all": np.concatenate([each[name].ravel() for name in sorted(each)])} for each in (got, want))
    assert_trees_agree(got, want, 1e-9, "gradient")
    assert set(weights) == set(net.shapes()) and all(weights[name].shape == shape for name, shape in net.shapes().items())


def depthwise_torch(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    kernel = weight.permute(2, 0, 1)[:, None]
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, None, stride, weight.shape[0] // 2, groups=x.shape[3]).permute(0, 2, 3, 1)


def depthwise_jax(x: jax.Array, weight: jax.Array, stride: int) -> jax.Array:
    pad = weight.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, weight[:, :, None], (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )  # fmt: skip


def test_channels_of_two_groups_are_shuffled() -> None:
    """With two groups and no shuffle, the first half of the hidden channels would see the first half of the inputs alone."""
    block = network_torch.build(InvertedResidual(inputs=4, outputs=4, expand=2, groups=2, activation="none"), dtype=torch.float64)
    block.eval()
    x = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    reached = []
    for channel in range(4):
        x.zero_()[0, channel] = 1.0
        reached.append({int(i) for i in torch.nonzero(block(x)[0, :, 0, 0] - x[0, :, 0, 0])})
    assert reached == [{0, 1, 2, 3}] * 4


@given(st.floats(1, 3000), st.sampled_from([4, 8, 16]))
def test_divisible(channels: float, by: int) -> None:
    found = divisible(channels, by)
    assert found % by == 0 and found >= 0.9 * min(channels, found) and found >= 0.9 * channels
    assert found - channels <= by and (found == by or channels - found < by)


def test_scans_and_branches_are_counted_as_often_as_they_run() -> None:
    a = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def function(x: jax.Array) -> jax.Array:
        x = jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_jax(function, a)[:1] == (7 * 64,)


def test_saved_bytes_are_those_of_distinct_storages() -> None:
    weight, x = torch.randn(6, 5, requires_grad=True), torch.randn(3, 5)
    with Saved(weight) as saved:
        y = torch.tanh(x @ weight.T)  # x for the product, tanh's result for tanh
        y.square().sum()  # and again for the square
    assert saved.bytes == 4 * (3 * 5 + 3 * 6) and saved.numbers == 3 * 5 + 3 * 6
    with Saved(weight, x) as saved:
        torch.tanh(x @ weight.T)
    assert saved.bytes == 4 * 3 * 6

    def function(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(x @ w.T))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((6, 5), (3, 5))]
    assert saved_jax(function, *shapes) == 4 * (6 * 5 + 3 * 5 + 3 * 6)  # both factors, and the cosine


def test_a_measured_table_is_kept_and_only_new_keys_are_timed(tmp_path: Path) -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    file = tmp_path / "tables" / "latency.yaml"
    table = LatencyTable.measured(functions, "here", file, repeats=2, least=0)
    assert set(table) == {"a", "b"} and all(value >= 0 for value in table.values()) and set(calls) == {"a", "b"}
    calls.clear()
    again = LatencyTable.measured({**functions, "c": lambda: calls.append("c")}, "here", file, repeats=2, least=0)
    assert set(calls) == {"c"} and again["a"] == table["a"]
    assert again.total(["a", "b", "a"]) == 2 * table["a"] + table["b"]
    LatencyTable.measured(functions, "elsewhere", file, repeats=1, least=0)
    assert set(calls) == {"a", "b", "c"}
    file.write_text("[1, 2]")
    with pytest.raises(UserError, match="no table of latencies"):
        LatencyTable.measured(functions, "here", file)


def test_bad_input_is_refused() -> None:
    table = LatencyTable({"k3 e6 56x56": 1.5}, "Pixel 1")
    with pytest.raises(KeyError, match="no latency of 'k3 e6 57x57' in the table of Pixel 1; the nearest key is 'k3 e6 56x56'"):
        table["k3 e6 57x57"]
    for value in (float("nan"), -1.0, float("inf")):
        with pytest.raises(ValueError, match="latency of 'a'"):
            LatencyTable({"a": value}, "nowhere")
    with pytest.raises(ValueError, match="odd kernel"):
        Convolution(inputs=3, outputs=3, kernel=2)
    with pytest.raises(ValueError, match="groups must divide"):
        InvertedResidual(inputs=3, outputs=4, groups=2)
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        InvertedResidual(inputs=4, outputs=4, activation="tanh")
    with pytest.raises(ValueError, match="layer 1 takes 8 channels, but the one before it puts out 4"):
        ConvNet(layers=(Convolution(inputs=3, outputs=4), Convolution(inputs=8, outputs=4)), classes=2)
    with pytest.raises(ValueError, match="0 layers"):
        ConvNet(layers=(), classes=2)
