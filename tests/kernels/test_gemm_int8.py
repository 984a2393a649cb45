"""What the agreement of the backends does not say: whole numbers of any size, torch's own layers, factors, bad input."""

import math
import warnings

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given

from kernels.gemm_int8 import dyadic, matmul_int8, matmul_int8_dyadic, matmul_int8_scaled, requantise

CODES = st.integers(-(2**31), 2**31 - 1)


def by_hand(q, m, e, bits):
    """In whole numbers without a limit."""
    return min(max((q * m + ((1 << e) >> 1)) >> e, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)


@given(
    st.lists(CODES, min_size=1, max_size=8),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.integers(0, 62),
    st.sampled_from([4, 8, 16, 32]),
)
def test_rescaling_is_that_of_unlimited_integers(codes, m, e, bits):
    want = [by_hand(q, m, e, bits) for q in codes]
    arrays = np.array(codes, np.int32), np.array([m], np.int32), np.array([e], np.int32)
    assert requantise(*arrays, bits=bits).tolist() == want
    tensors = [torch.from_numpy(each) for each in arrays]
    assert requantise(*tensors, bits=bits).tolist() == want
    # The whole-array path, which a GPU and a traced graph take.
    from kernels.gemm_int8 import torch_impl

    assert torch_impl.requantise(tensors[0].as_subclass(Plain), *tensors[1:], bits=bits).tolist() == want


class Plain(torch.Tensor):
    """No plain tensor, so nothing looks at its memory."""


@given(st.lists(CODES, min_size=1, max_size=3), st.integers(-(2**31) + 1, 2**31 - 1), st.integers(0, 62))
def test_rescaling_in_jax_without_64_bit_types_outside(codes, m, e):
    found = RESCALE(np.array((codes * 3)[:3], np.int32), np.array([m], np.int32), np.array([e], np.int32))
    assert found.dtype == jnp.int16
    assert found.tolist() == [by_hand(q, m, e, 16) for q in (codes * 3)[:3]]


RESCALE = jax.jit(lambda q, m, e: requantise(jnp.asarray(q), jnp.asarray(m), jnp.asarray(e), bits=16))


@given(st.floats(1e-30, 2.0**30), st.booleans())
def test_factor_is_the_ratio_to_31_bits(ratio, negative):
    ratio = -ratio if negative else ratio
    m, e = (int(each[0]) for each in dyadic(ratio))
    assert abs(m) < 2**31
    assert 0 <= e <= 62
    if abs(ratio) >= 2.0**-31:
        assert abs(m) >= 2**30
        assert abs(math.ldexp(m, -e) / ratio - 1) <= 2**-31 * (1 + 1e-9)
    else:
        assert abs(math.ldexp(m, -e) - ratio) <= 2.0**-62


def test_factors_at_the_edges():
    for ratio in (1.0, 0.5, 1 - 2.0**-40, 2.0**31 - 1, 2.0**-31, 2.0**-62, 5e-300):
        m, e = dyadic(ratio)
        assert abs(math.ldexp(int(m[0]), -int(e[0])) - ratio) <= max(2.0**-31 * ratio, 2.0**-62)
    for wrong in (0.0, np.nan, np.inf, 2.0**31):
        with pytest.raises(ValueError, match="norm: the factor of channel 1 is"):
            dyadic([1.0, wrong], "norm")


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_product_is_exact_at_the_ends_of_the_range(inner, seed):
    rng = np.random.default_rng(seed)
    x, w = (rng.choice(np.array([-128, -127, 127, 0], np.int8), size) for size in ((3, inner), (2, inner)))
    want = [[sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in w] for row in x]
    assert matmul_int8(x, w).tolist() == want
    assert matmul_int8(torch.from_numpy(x), torch.from_numpy(w)).tolist() == want


def test_scaled_product_is_torchs_quantised_layer():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.nn.quantized.Linear(24, 10)
        weight = torch.quantize_per_channel(
            torch.from_numpy(rng.normal(size=(10, 24)).astype(np.float32)),
            torch.full((10,), 0.03),
            torch.zeros(10, dtype=torch.long),
            0,
            torch.qint8,
        )
        bias = torch.from_numpy(rng.normal(size=10).astype(np.float32))
        layer.set_weight_bias(weight, bias)
        layer.scale, layer.zero_point = 0.25, 128
        x = torch.quantize_per_tensor(torch.from_numpy(rng.normal(size=(7, 24)).astype(np.float32)), 0.02, 128, torch.quint8)
        want = layer(x).int_repr().int() - 128
    codes = (x.int_repr().int() - 128).to(torch.int8)
    got = matmul_int8_scaled(codes, weight.int_repr(), torch.tensor([0.02]), torch.full((10,), 0.03), bias) / 0.25
    # The library rounds halves to even; nothing lies on one here.
    assert torch.equal(got.round().clamp(-128, 127).int(), want)


def test_fused_is_product_and_rescaling():
    rng = np.random.default_rng(1)
    x, w = (torch.from_numpy(rng.integers(-128, 128, size, dtype=np.int8)) for size in ((2, 5, 30), (9, 30)))
    bias = torch.from_numpy(rng.integers(-5000, 5000, 9, dtype=np.int32))
    m, e = (torch.from_numpy(each) for each in dyadic(rng.uniform(1e-4, 1e-2, 9)))
    for bits in (4, 8, 16):
        assert torch.equal(matmul_int8_dyadic(x, w, bias, m, e, bits=bits), requantise(matmul_int8(x, w, bias), m, e, bits=bits))


def test_exports_without_floats():
    from torch.export import export

    class Layer(torch.nn.Module):
        def forward(self, x, w, m, e):
            return matmul_int8_dyadic(x, w, None, m, e)

    m, e = (torch.from_numpy(each) for each in dyadic([0.001, 0.002, 0.003]))
    inputs = (torch.ones(4, 8, dtype=torch.int8), torch.ones(3, 8, dtype=torch.int8), m, e)
    graph = export(Layer(), inputs, strict=False)
    assert all(
        not node.meta["val"].is_floating_point() for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    )
    assert torch.equal(graph.module()(*inputs), Layer()(*inputs))


def test_bad_input():
    x, w = torch.ones(4, 8, dtype=torch.int8), torch.ones(3, 8, dtype=torch.int8)
    m, e = (torch.from_numpy(each) for each in dyadic([0.001, 0.002, 0.003]))
    with pytest.raises(ValueError, match="bits is 5; wanted one of 4, 8, 16, 32"):
        matmul_int8_dyadic(x, w, None, m, e, bits=5)
    with pytest.raises((ValueError, TypeError), match=r"do not fit|weight"):
        matmul_int8(x, w[:, :7])
    with pytest.raises(TypeError, match=r"wanted an array of int8|Int8"):
        matmul_int8(x.int(), w)
    with pytest.raises(ValueError, match="shift reaches from 63 to 63; wanted 0 to 62"):
        requantise(x, torch.tensor([1], dtype=torch.int32), torch.tensor([63], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"wanted \(1,\) or \(8,\)"):
        requantise(x, m, e)
    with pytest.raises(ValueError, match="may leave 32 bits"):
        matmul_int8(torch.ones(1, 140_000, dtype=torch.int8), torch.ones(1, 140_000, dtype=torch.int8))
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="x_scale holds a scale that is not above 0"):
            matmul_int8_scaled(x, w, torch.tensor([scale]), torch.ones(3))
    with pytest.raises(ValueError, match="weight_scale has the shape"):
        matmul_int8_scaled(x, w, torch.ones(1), torch.ones(2))
