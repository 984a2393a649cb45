"""What the agreement of the backends does not say: PyTorch's own results bit for bit, ties, the learned step, bad input."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given

from kernels.fake_quant import fake_quantize, limits


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.booleans(), st.sampled_from([0, 1, 2]))
def test_values_and_gradients_are_torchs_bit_for_bit(seed, bits, signed, axis):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, generator=generator) * 3
    scale = torch.rand(x.shape[axis], generator=generator) + 0.01
    x[0] = (x[0] * 4).round() * 0.5 * scale.movedim(0, 0).mean()  # on and between the grid
    low, high = limits(bits, signed)
    zero = torch.randint(low, high + 1, scale.shape, generator=generator, dtype=torch.int32)
    dy = torch.randn(x.shape, generator=generator)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = fake_quantize(mine, scale, bits=bits, axis=axis, zero_point=zero, signed=signed)
    want = torch.fake_quantize_per_channel_affine(theirs, scale, zero, axis, low, high)
    assert torch.equal(got, want)
    got.backward(dy)
    want.backward(dy)
    assert torch.equal(mine.grad, theirs.grad)


def test_learned_step_is_torchs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, generator=generator)
    scale = (torch.rand(6, generator=generator) / 5 + 0.05).requires_grad_()
    theirs = scale.detach().clone().requires_grad_()
    dy = torch.randn(x.shape, generator=generator)
    fake_quantize(x, scale, bits=4, axis=0).backward(dy)
    torch._fake_quantize_learnable_per_channel_affine(x, theirs, torch.zeros(6), 0, -8, 7, 1.0).backward(dy)
    assert torch.allclose(scale.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_learned_step_moves_as_the_error_does():
    """With the rounding held still, the gradient is that of finite differences of s q, q fixed, and of x / s inside."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    scale = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    fake_quantize(x, scale, bits=3).sum().backward()
    quotient = x / 0.37
    place = quotient.round().clamp(-4, 3)
    inside = quotient.round() == place
    assert scale.grad.item() == pytest.approx((place - torch.where(inside, quotient, 0)).sum().item())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_ties_go_to_even(backend):
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 1e30, -1e30])
    got = fake_quantize(x, torch.tensor(1.0), bits=3, backend=backend)
    assert got.tolist() == [-2, -2, 0, 0, 2, 2, 3, 3, -4]


@pytest.mark.parametrize("backend", ["jax", "pallas"])
def test_ties_go_to_even_in_jax(backend):
    x = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 1e30, -1e30], jnp.float32)
    got = jax.jit(lambda x: fake_quantize(x, jnp.float32(1), bits=3, backend=backend))(x)
    assert got.tolist() == [-2, -2, 0, 0, 2, 2, 3, 3, -4]


def test_the_gradient_stops_outside():
    x = torch.tensor([-9.0, -4.4, -4.6, 0.0, 3.4, 3.6, float("inf")], requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), bits=3).sum().backward()
    assert x.grad.tolist() == [0, 1, 0, 1, 1, 0, 0]


def test_a_constant_scale_may_stand_in_a_traced_function():
    scale = jnp.float32(0.5)
    assert jax.jit(lambda x: fake_quantize(x, scale, bits=4))(jnp.float32(0.7)) == 0.5


def test_groups_are_the_last_axis_cut():
    x = np.random.default_rng(0).standard_normal((3, 12))
    scale = np.random.default_rng(1).uniform(0.1, 1, (3, 3))
    want = [[fake_quantize(x[i, 4 * j : 4 * j + 4], np.array(scale[i, j]), bits=4) for j in range(3)] for i in range(3)]
    assert np.array_equal(fake_quantize(x, scale, bits=4, group=4), np.array(want).reshape(3, 12))


def test_bad_input():
    x = torch.ones(2, 8)
    with pytest.raises(ValueError, match="bits is 9; wanted 2 to 8"):
        fake_quantize(x, torch.tensor(1.0), bits=9)
    with pytest.raises(ValueError, match="both axis and group"):
        fake_quantize(x, torch.ones(2), bits=4, axis=0, group=4)
    with pytest.raises(ValueError, match=r"scale is float32 \(3,\); wanted float32 \(2,\)"):
        fake_quantize(x, torch.ones(3), bits=4, axis=0)
    with pytest.raises(ValueError, match="groups of 3 do not divide"):
        fake_quantize(x, torch.ones(2, 2), bits=4, group=3)
    with pytest.raises(ValueError, match="axis is 2; x has 2 axes"):
        fake_quantize(x, torch.ones(2), bits=4, axis=2)
    with pytest.raises(ValueError, match="a scale is not positive"):
        fake_quantize(x, torch.tensor([1.0, 0.0]), bits=4, axis=0)
    with pytest.raises(ValueError, match="a scale is not positive"):
        fake_quantize(x, torch.tensor(float("nan")), bits=4)
    with pytest.raises(TypeError, match="wanted float32"):
        fake_quantize(x, torch.tensor(1.0, dtype=torch.float64), bits=4)
    with pytest.raises(TypeError, match=r"zero_point is float32|Int"):
        fake_quantize(x, torch.tensor(1.0), bits=4, zero_point=torch.tensor(0.0))
    with pytest.raises(TypeError, match=r"wanted floating point|Float"):
        fake_quantize(torch.ones(2, dtype=torch.int32), torch.tensor(1.0), bits=4)
