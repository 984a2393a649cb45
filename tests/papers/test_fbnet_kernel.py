"""The grouped convolution with shuffled outputs: by hand, against the library, under transformations, bad input."""

import inspect

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from papers.fbnet.kernel import group_pointwise_shuffle

pytestmark = pytest.mark.xdist_group("fbnet")

SIZES = st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 19), st.integers(1, 19))


def drawn(places, groups, inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((places, groups * inputs)), rng.standard_normal((groups, inputs, outputs))


def by_hand(x, weight):
    groups, inputs, outputs = weight.shape
    y = np.zeros((len(x), groups * outputs))
    for n in range(len(x)):
        for g in range(groups):
            for j in range(outputs):
                y[n, j * groups + g] = sum(x[n, g * inputs + i] * weight[g, i, j] for i in range(inputs))
    return y


@given(SIZES)
def test_sums_by_hand(sizes):
    x, weight = drawn(*sizes)
    want = by_hand(x, weight)
    for found in (group_pointwise_shuffle(x, weight), group_pointwise_shuffle(torch.from_numpy(x), torch.from_numpy(weight))):
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)


def test_values_and_gradients_are_those_of_the_librarys_convolution_and_shuffle():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((2, 5, 4, 24))).requires_grad_()
    kernel = torch.from_numpy(rng.standard_normal((36, 8, 1, 1))).requires_grad_()
    seed = torch.from_numpy(rng.standard_normal((2, 5, 4, 36)))
    y = F.channel_shuffle(F.conv2d(x.permute(0, 3, 1, 2), kernel, groups=3), 3).permute(0, 2, 3, 1)
    want = torch.autograd.grad(y, (x, kernel), seed)
    weight = kernel.detach().reshape(3, 12, 8).transpose(1, 2).contiguous().requires_grad_()
    found = group_pointwise_shuffle(x, weight)
    got = torch.autograd.grad(found, (x, weight), seed)
    torch.testing.assert_close(found, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1].transpose(1, 2).reshape(36, 8, 1, 1), want[1], rtol=0, atol=1e-12)


def test_strides_change_nothing():
    x, weight = (torch.from_numpy(each) for each in drawn(40, 2, 32, 32))
    wide = torch.stack([x, -x], -1)[..., 0]
    assert not wide.is_contiguous()
    want = group_pointwise_shuffle(x, weight)
    torch.testing.assert_close(group_pointwise_shuffle(wide, weight), want, rtol=0, atol=1e-12)
    turned = weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(group_pointwise_shuffle(x, turned), want, rtol=0, atol=1e-12)


def test_only_wanted_gradients_are_computed():
    x, weight = (torch.from_numpy(each) for each in drawn(3, 2, 4, 5))
    y = group_pointwise_shuffle(x, weight.requires_grad_())
    y.sum().backward()
    assert x.grad is None and weight.grad is not None
    with torch.no_grad():
        assert not group_pointwise_shuffle(x, weight).requires_grad


def test_jax_transformations():
    x, weight = (jnp.asarray(each, jnp.float32) for each in drawn(6, 2, 5, 3))

    def loss(x, weight):
        return (group_pointwise_shuffle(x, weight) ** 2).sum()

    per_place = jax.vmap(lambda row: jax.grad(loss, 1)(row[None], weight))(x).sum(0)
    np.testing.assert_allclose(per_place, jax.jit(jax.grad(loss, 1))(x, weight), rtol=1e-4)


@pytest.mark.parametrize(
    ("x", "weight", "error", "words"),
    [
        (np.zeros((3, 5)), np.zeros((2, 3, 4)), ValueError, r"wanted \(\.\.\., groups x inputs of each\)"),
        (np.zeros((3, 6)), np.zeros((6, 4)), ValueError, "groups, inputs of each"),
        (np.zeros((3, 6)), np.zeros((2, 3, 0)), ValueError, "none of the latter 0"),
        (np.zeros(()), np.zeros((1, 1, 1)), ValueError, "wanted"),
        (np.zeros((3, 6), int), np.zeros((2, 3, 4)), TypeError, "same floating type"),
        (np.zeros((3, 6), np.float32), np.zeros((2, 3, 4)), TypeError, "convert one or both"),
        ([[1.0]], np.zeros((1, 1, 1)), TypeError, "x is a list"),
    ],
)
def test_bad_input_is_refused(x, weight, error, words):
    with pytest.raises(error, match=words):
        inspect.unwrap(group_pointwise_shuffle)(x, weight)


def test_kernels_that_compute_in_float32_refuse_float64():
    x, weight = drawn(2, 2, 3, 4)
    with pytest.raises(ValueError, match="backend='torch'"):
        group_pointwise_shuffle(torch.from_numpy(x), torch.from_numpy(weight), backend="triton")
    with jax.enable_x64(True), pytest.raises(ValueError, match="backend='jax'"):
        group_pointwise_shuffle(jnp.asarray(x), jnp.asarray(weight), backend="pallas")
