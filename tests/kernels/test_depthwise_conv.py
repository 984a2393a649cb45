"""What the agreement of the backends does not say: independent oracles, properties, every way through a backend, bad input."""

import functools
import inspect

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from scipy.signal import correlate2d

from kernels.depthwise_conv import compiled, depthwise_conv, pallas_impl, triton_impl
from kernels.depthwise_conv.cases import PEERS
from kernels.depthwise_conv.layout import geometry


def _draw(x=(2, 6, 7, 5), kernel=(5, 5), dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in (x, (*kernel, x[3]))]


def _by_scipy(x, weight, stride, dilation, padding):
    """Channel by channel: the dilated kernel written out, the image padded, every stride-th result."""
    rows, columns, channels = weight.shape
    sizes = [dilation * (kernel - 1) // 2 if padding is None else padding for kernel in (rows, columns)]
    spread = np.zeros((dilation * (rows - 1) + 1, dilation * (columns - 1) + 1, channels))
    spread[::dilation, ::dilation] = weight
    padded = np.pad(x, ((0, 0), (sizes[0],) * 2, (sizes[1],) * 2, (0, 0)))
    planes = [[correlate2d(image[..., c], spread[..., c], "valid") for c in range(channels)] for image in padded]
    return np.moveaxis(np.array(planes), 1, -1)[:, ::stride, ::stride]


@st.composite
def _settings(draw):
    kernel = draw(st.sampled_from([1, 2, 3, 4, 5])), draw(st.sampled_from([1, 3, 5, 7]))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.one_of(st.none(), st.integers(0, 7)))
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    assume(padding is not None or kernel[0] % 2)
    return shape, kernel, {"stride": stride, "dilation": dilation, "padding": padding}


@given(_settings())
def test_values_are_scipys_and_gradients_those_of_a_bilinear_map(settings):
    """<dy, conv(x, w)> is linear in x and in w, so each gradient is found by putting another array in that place."""
    shape, kernel, options = settings
    g = geometry(shape, (*kernel, shape[3]), **options)
    assume(min(g.out_height, g.out_width) > 0)
    x, weight = (each.requires_grad_() for each in _draw(shape, kernel))
    y = depthwise_conv(x, weight, **options)
    want = _by_scipy(x.detach().numpy(), weight.detach().numpy(), **options)
    np.testing.assert_allclose(y.detach(), want, rtol=1e-11, atol=1e-11)
    dy, other_x, other_weight = (torch.randn(each.shape, dtype=torch.float64) for each in (y, x, weight))
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    for gradient, other, images, kernels in ((dx, other_x, other_x, weight), (dweight, other_weight, x, other_weight)):
        moved = _by_scipy(images.detach().numpy(), kernels.detach().numpy(), **options)
        np.testing.assert_allclose((gradient * other).sum(), (dy.numpy() * moved).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"dilation": 2, "stride": 2}, {"padding": 4}])
def test_gradients_by_finite_differences(options):
    x, weight = (each.requires_grad_() for each in _draw((1, 3, 4, 1), (3, 5)))
    assert torch.autograd.gradcheck(lambda x, weight: depthwise_conv(x, weight, **options), (x, weight))


@pytest.mark.parametrize("peer", [name for name in PEERS["depthwise_conv"] if "first" not in name])
@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "padding": 1}])
def test_peers_of_the_benchmark_are_the_same_function(peer, options):
    x, weight = (each.requires_grad_() for each in _draw((2, 7, 6, 4), (3, 3), torch.float32))
    found = []
    for function in (PEERS["depthwise_conv"][peer], functools.partial(depthwise_conv, backend="triton")):
        y = function(x=x, weight=weight, **options)
        found.append((y.detach(), *torch.autograd.grad(y.sin().sum(), (x, weight))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_peer_with_channels_first_has_the_same_work():
    x, weight = _draw()
    assert PEERS["depthwise_conv"]["conv2d (channels first)"](x=x, weight=weight, stride=2).numel() == 2 * 3 * 4 * 5


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}])
def test_threads_share_the_rows(options, monkeypatch):
    """Any number of parts, more rows than a part has, stretches that end anywhere: the same sums."""
    x, weight = _draw((3, 7, 40, 3))
    g = geometry(tuple(x.shape), tuple(weight.shape), options.get("stride", 1), options.get("dilation", 1), None)
    dy = torch.randn(3, g.out_height, g.out_width, 3, dtype=torch.float64)
    want = compiled.weight_gradient(x, dy, g)
    monkeypatch.setattr(compiled, "PART", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for numbers in (1, 9, 50, 1000):
        monkeypatch.setattr(compiled, "LONG", numbers)
        torch.testing.assert_close(compiled.weight_gradient(x, dy, g), want, rtol=1e-12, atol=1e-12)
    assert torch.equal(compiled.weight_gradient(x, dy, g), compiled.weight_gradient(x, dy, g))


def test_programs_of_triton_share_the_tiles(monkeypatch):
    """More tiles than programs: each goes on to the next of its share."""
    x, weight = (each.requires_grad_() for each in _draw((2, 5, 33, 3), (1, 3), torch.float32))
    want = torch.autograd.grad(depthwise_conv(x, weight).sin().sum(), weight)[0]
    monkeypatch.setattr(triton_impl, "SHARES", 3)
    got = torch.autograd.grad(depthwise_conv(x, weight, backend="triton").sin().sum(), weight)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("options", [{"stride": 1}, {"stride": 2}])
def test_pallas_with_the_blocks_of_other_platforms(platform, options, monkeypatch):
    """The blocks that a GPU and a TPU get, interpreted."""
    monkeypatch.setattr(pallas_impl, "_options", lambda _: {"interpret": True})
    x, weight = (each.requires_grad_() for each in _draw((1, 9, 19, 3), (1, 3), torch.float32))
    y = depthwise_conv(x, weight, **options)
    dy = torch.randn_like(y)
    want = y.detach(), *torch.autograd.grad(y, (x, weight), dy)
    g = geometry(tuple(x.shape), tuple(weight.shape), options["stride"], 1, None)
    images, kernels, seeds = (jnp.asarray(each.detach().numpy()) for each in (x, weight, dy))
    value, pull = jax.vjp(lambda x, weight: pallas_impl._convolve(x, weight, g, platform), images, kernels)
    for mine, theirs in zip((value, *pull(seeds)), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_come_back_as_they_went_in(dtype):
    x, weight = (each.to(getattr(torch, dtype)) for each in _draw(kernel=(1, 5)))
    exact = depthwise_conv(x.double(), weight.double())
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = depthwise_conv(x, weight)
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    assert {each.dtype for each in (y, *gradients)} == {x.dtype}
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=5e-2)
    images, kernels = (jnp.asarray(each.detach().float().numpy(), dtype) for each in (x, weight))
    value, pull = jax.vjp(depthwise_conv, images, kernels)
    assert {each.dtype for each in (value, *pull(value))} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=2e-2, atol=5e-2)


def test_only_the_gradients_that_are_wanted():
    for backend in ("torch", "triton"):
        for wanted in (0, 1):
            arrays = _draw((1, 2, 3, 4), (1, 5), torch.float32)
            arrays[wanted].requires_grad_()
            depthwise_conv(*arrays, backend=backend).sum().backward()
            assert arrays[wanted].grad is not None
            assert arrays[1 - wanted].grad is None


def test_views_of_images_with_channels_first():
    x, weight = _draw((2, 3, 4, 7), (1, 5), torch.float32)
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    kernels = weight.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    for backend in ("torch", "triton"):
        y = depthwise_conv(channels_first, kernels, backend=backend)
        assert y.is_contiguous()
        torch.testing.assert_close(y, depthwise_conv(x, weight), rtol=1e-5, atol=1e-5)
        seed = torch.randn(2, 7, 3, 4).permute(0, 2, 3, 1)
        mine = torch.autograd.grad(y, (channels_first, kernels), seed)
        again = [each.clone().requires_grad_() for each in (x, weight)]
        theirs = torch.autograd.grad(depthwise_conv(*again), again, seed.contiguous())
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


def test_transformations_of_jax():
    x, weight = (jnp.asarray(each.numpy(), jnp.float32) for each in _draw((3, 6, 5, 4), (1, 3)))
    want = depthwise_conv(x, weight)
    np.testing.assert_allclose(jax.vmap(lambda x: depthwise_conv(x[None], weight)[0])(x), want, rtol=1e-5, atol=1e-5)

    def loss(weight, x):
        return (depthwise_conv(x, weight) ** 2).sum()

    each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(weight, x[:, None])
    np.testing.assert_allclose(each.sum(0), jax.grad(loss)(weight, x), rtol=1e-4, atol=1e-4)


def test_torch_exports_it():
    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return depthwise_conv(x, weight, stride=2)

    inputs = tuple(_draw(dtype=torch.float32))
    graph = torch.export.export(Layer(), inputs, strict=False)
    torch.testing.assert_close(graph.module()(*inputs), Layer()(*inputs))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_memory_of_any_size_is_counted_on_the_meta_device(backend):
    x, weight = (torch.empty(shape, device="meta", requires_grad=True) for shape in ((2, 224, 224, 32), (5, 5, 32)))
    y = depthwise_conv(x, weight, stride=2, backend=backend)
    gradients = torch.autograd.grad(y, (x, weight), torch.empty_like(y))
    assert [tuple(each.shape) for each in (y, *gradients)] == [(2, 112, 112, 32), tuple(x.shape), tuple(weight.shape)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stride": 0}, "stride is 0; wanted a whole number of at least 1"),
        ({"stride": (2, 2)}, r"stride is \(2, 2\); wanted a whole number"),
        ({"dilation": True}, "dilation is True; wanted a whole number of at least 1"),
        ({"padding": -1}, "padding is -1; wanted a whole number of at least 0, or None"),
        ({"padding": "same"}, "padding is 'same'"),
        ({"x": torch.zeros(2, 6, 7)}, r"x has shape \(2, 6, 7\)"),
        ({"weight": torch.zeros(3, 3, 4)}, r"weight \(3, 3, 4\); wanted .* the same channels"),
        ({"weight": torch.zeros(5, 1, 3, 3)}, r"weight \(5, 1, 3, 3\)"),
        ({"weight": torch.zeros(0, 3, 5)}, "none of the latter 0"),
        ({"x": torch.zeros(2, 6, 7, 0), "weight": torch.zeros(3, 3, 0)}, "none of the latter 0"),
        ({"weight": torch.zeros(3, 2, 5)}, "has an even size; wanted odd ones, or give padding"),
        ({"weight": torch.zeros(3, 3, 5), "padding": 0, "dilation": 3}, r"reaches over \(7, 7\) .* of \(0, 0\) has \(6, 7\)"),
        ({"x": torch.zeros(2, 0, 7, 5)}, "an image that is not empty"),
    ],
)
def test_bad_input_is_one_sentence(changes, says):
    # The check of annotations in tests would speak before the function's own door does.
    door = inspect.unwrap(depthwise_conv)
    with pytest.raises(ValueError, match=says):
        door(**{"x": torch.zeros(2, 6, 7, 5), "weight": torch.zeros(3, 3, 5), **changes})


def test_types_are_not_mixed():
    door = inspect.unwrap(depthwise_conv)
    x, weight = _draw(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"x is torch.int32, weight torch.int32; wanted the same floating type"):
        door(x.int(), weight.int())
    with pytest.raises(TypeError, match=r"x is torch.float32, weight torch.float64; wanted the same"):
        door(x, weight.double())
    with pytest.raises(TypeError, match="weight is a list"):
        door(x, [1.0])
    with pytest.raises(TypeError, match=r"x is torch.float32, weight float32; wanted|one framework, got torch and jax"):
        door(x, jnp.asarray(weight.numpy()))
    with pytest.raises(ValueError, match="'triton' computes in float32, got float64"):
        depthwise_conv(x.double(), weight.double(), backend="triton")
    with jax.enable_x64(True), pytest.raises(ValueError, match="'pallas' computes in float32, got float64"):
        depthwise_conv(*(jnp.asarray(each.double().numpy()) for each in (x, weight)), backend="pallas")
    assert isinstance(depthwise_conv(x.numpy(), weight.numpy()), np.ndarray), "NumPy takes the reference"
