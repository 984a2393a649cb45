"""Grouped convolution against convolutions of each group, its special cases, and every bad input."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.fast_model_scaling.kernel import group_conv

pytestmark = pytest.mark.xdist_group("fast_model_scaling")


def peer(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Each group by itself."""
    groups = x.shape[3] // weight.shape[2]
    pad = [(size - 1) // 2 for size in weight.shape[:2]]
    parts = zip(x.permute(0, 3, 1, 2).chunk(groups, 1), weight.permute(3, 2, 0, 1).chunk(groups, 0), strict=True)
    return torch.cat([F.conv2d(image, kernel, None, stride, pad) for image, kernel in parts], 1).permute(0, 2, 3, 1)


@settings(max_examples=25)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from([1, 3, 5]), st.sampled_from([1, 3]), st.integers(1, 3),
)  # fmt: skip
def test_equals_a_convolution_of_each_group(size, groups, each, out, rows, columns, stride) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(*size, groups * each, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, columns, each, groups * out, generator=generator, dtype=torch.float64)
    got = group_conv(x, weight, stride=stride)
    torch.testing.assert_close(got, peer(x, weight, stride), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(group_conv(x.numpy(), weight.numpy(), stride=stride), got, rtol=1e-12, atol=1e-12)


def test_gradients_stay_within_a_group() -> None:
    x = torch.randn(1, 4, 4, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 8, 24, dtype=torch.float64, requires_grad=True)
    y = group_conv(x, weight)
    dx, dw = torch.autograd.grad(y[..., 8:16].sum(), (x, weight))
    assert (dx[..., :8] == 0).all() and (dx[..., 16:] == 0).all() and (dx[..., 8:16] != 0).any()
    assert (dw[..., :8] == 0).all() and (dw[..., 16:] == 0).all()


def test_bad_input_is_refused() -> None:
    x, weight = np.zeros((1, 4, 4, 6)), np.zeros((3, 3, 2, 6))
    door = inspect.unwrap(group_conv)
    with pytest.raises(TypeError, match="x is a list"):
        door([1.0], weight)
    with pytest.raises(TypeError, match="wanted the same floating type"):
        door(x.astype(np.float32), weight)
    with pytest.raises(TypeError, match="wanted the same floating type"):
        door(x.astype(int), weight.astype(int))
    with pytest.raises(TypeError, match="one framework"):
        door(x.astype(np.float32), jnp.zeros((3, 3, 2, 6)))
    for stride in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match="stride is"):
            door(x, weight, stride=stride)
    for images, kernels in (
        ((1, 4, 6), (3, 3, 2, 6)),
        ((1, 4, 4, 6), (3, 3, 6)),
        ((1, 0, 4, 6), (3, 3, 2, 6)),
        ((1, 4, 4, 6), (3, 3, 2, 0)),
    ):
        with pytest.raises(ValueError, match="none of them 0 but the batch"):
            door(np.zeros(images), np.zeros(kernels))
    with pytest.raises(ValueError, match="even kernel"):
        door(x, np.zeros((2, 3, 2, 6)))
    for kernels in ((3, 3, 4, 6), (3, 3, 2, 7)):
        with pytest.raises(ValueError, match="do not fit"):
            door(x, np.zeros(kernels))
    single = torch.zeros(1, 4, 4, 6, dtype=torch.float64), torch.zeros(3, 3, 2, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="computes in float32"):
        group_conv(*single, backend="triton")
