"""What the agreement of the backends does not say: exact optimality, every bit pattern, other people's packing, bad input."""

import itertools
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from kernels.sparse24 import mask, matmul, pack, unpack

PATTERNS = [pattern for pattern in itertools.product((True, False), repeat=4) if sum(pattern) == 2]
"""In the order 1100, 1010, 1001, 0110, 0101, 0011."""
FINITE = st.floats(allow_nan=False, width=32)


def best(sizes):
    scores = [sum(Fraction(size) for size, kept in zip(sizes, pattern, strict=True) if kept) for pattern in PATTERNS]
    return PATTERNS[scores.index(max(scores))]


@pytest.fixture(scope="module")
def compiled():
    """JAX compiled, one shape for all examples."""
    single, pairs = (jax.jit(lambda w, paired=paired: mask(w, paired=paired)) for paired in (False, True))
    return {False: single, True: pairs}


@given(arrays(np.float32, (1, 8), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_the_best_of_six_patterns_in_exact_arithmetic(compiled, weights):
    want = np.array([[*best(np.abs(weights[0, :4]).tolist()), *best(np.abs(weights[0, 4:]).tolist())]])
    assert np.array_equal(mask(weights), want)
    assert np.array_equal(mask(torch.from_numpy(weights)), want)
    assert np.array_equal(compiled[False](weights), want)


@given(st.lists(st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 2.0, 3e38]), min_size=8, max_size=8))
def test_pairs_agree_at_ties_and_extremes(compiled, drawn):
    weights = np.array([drawn], np.float32)
    with np.errstate(over="ignore"):
        want = mask(weights, paired=True)
    assert want.reshape(4, 2).all(1).sum() == 2
    assert np.array_equal(mask(torch.from_numpy(weights), paired=True), want)
    assert np.array_equal(compiled[True](weights), want)


def test_the_best_pairs_are_kept():
    weights = np.random.default_rng(0).integers(-9, 10, (50, 64)).astype(np.float64)
    kept = mask(weights, paired=True)
    pairs = np.abs(weights).reshape(-1, 4, 2).sum(-1)
    want = np.repeat([best(each) for each in pairs.tolist()], 2, axis=-1).reshape(weights.shape)
    assert np.array_equal(kept, want)


PACK = {paired: jax.jit(lambda w, m, paired=paired: pack(w, m, paired=paired)) for paired in (False, True)}
UNPACK = {paired: jax.jit(lambda v, m, paired=paired: unpack(v, m, k=24, paired=paired)) for paired in (False, True)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@given(seed=st.integers(0, 2**32 - 1), paired=st.booleans())
def test_every_bit_pattern_comes_back(dtype, seed, paired):
    """NaN of any payload, infinities, subnormals, both zeros: values are moved, never computed with."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, np.iinfo(dtype).max, (2, 24), dtype=dtype, endpoint=True)
    kind = {1: np.int8, 2: np.float16, 4: np.float32, 8: np.float64}[dtype().itemsize]
    special = [0, 1, np.iinfo(dtype).max, np.iinfo(dtype).max // 2, np.iinfo(dtype).max // 2 + 1]
    bits[rng.random(bits.shape) < 0.3] = rng.choice(np.array(special, dtype))
    weights = bits.view(kind)
    unit = 2 if paired else 1
    chosen = np.array(PATTERNS)[rng.integers(0, 6, (2, 24 // (4 * unit)))]
    kept = np.repeat(chosen.reshape(2, -1), unit, axis=1)
    want = np.where(kept, bits, 0)
    values, meta = pack(weights, kept, paired=paired)
    assert unpack(values, meta, k=24, paired=paired).tobytes() == want.tobytes()
    tensor, words = pack(torch.from_numpy(weights), torch.from_numpy(kept), paired=paired)
    assert tensor.numpy().tobytes() == values.tobytes() and words.numpy().tobytes() == meta.tobytes()
    assert unpack(tensor, words, k=24, paired=paired).numpy().tobytes() == want.tobytes()
    if dtype is not np.uint64:  # JAX has no float64 here
        array, places = PACK[paired](weights, kept)
        assert np.asarray(array).tobytes() == values.tobytes() and np.asarray(places).tobytes() == meta.tobytes()
        assert np.asarray(UNPACK[paired](array, places)).tobytes() == want.tobytes()


def test_bfloat16():
    weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = mask(weights)
    assert torch.equal(kept, mask(weights.float()))
    values, meta = pack(weights, kept)
    assert values.dtype == torch.bfloat16 and torch.equal(unpack(values, meta, k=32), weights * kept)
    array = jnp.asarray(weights.float().numpy(), jnp.bfloat16)
    found = pack(array, jnp.asarray(kept.numpy()))
    assert np.array_equal(np.asarray(found[0], np.float32), values.float().numpy()) and np.array_equal(found[1], meta.numpy())
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    want = x.double() @ (weights * kept).double().T
    assert (matmul(x, values, meta) - want).abs().max() < 0.02 * want.abs().max()


def test_places_are_nvidias():
    """The values and, once put into its order, the words of PyTorch's packing for CUTLASS."""
    from torch.sparse import _semi_structured_conversions as theirs

    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)).half()
    kept = mask(weights)
    values, meta = pack(weights, kept)
    wanted, reordered = theirs.sparse_semi_structured_from_dense_cutlass(weights * kept)
    places = theirs._calculate_meta_reordering_scatter_offsets(64, meta.shape[1], torch.int16, "cpu")
    found = torch.zeros(meta.numel(), dtype=torch.int16).scatter_(0, places, meta.view(torch.int16).reshape(-1))
    assert torch.equal(values, wanted)
    assert torch.equal(found, reordered.reshape(-1))
    assert torch.equal(theirs.sparse_semi_structured_to_dense_cutlass(values, found.view_as(reordered)), weights * kept)


def test_first_word_by_hand():
    weights = np.array([[0, 5, 6, 0, 7, 0, 0, 8, 0, 0, 1, 2, 3, 4, 0, 0]], np.int8)
    values, meta = pack(weights, mask(weights))
    assert values.tolist() == [[5, 6, 7, 8, 1, 2, 3, 4]]
    assert meta.tolist() == [[0b0100_1110_1100_1001]]  # places (1, 2), (0, 3), (2, 3), (0, 1), from the right


def test_pairs_of_four_bits_are_a_mask_on_bytes():
    rng = np.random.default_rng(3)
    weights = rng.integers(-8, 8, (6, 64)).astype(np.int8)
    kept = mask(weights, paired=True)
    values, meta = pack(weights, kept, paired=True)
    joined = (weights[:, 0::2] & 15 | weights[:, 1::2] << 4).view(np.uint8)
    halves, same = pack(joined, kept[:, ::2])
    assert np.array_equal(same, meta)
    assert np.array_equal(halves, (values[:, 0::2] & 15 | values[:, 1::2] << 4).view(np.uint8))
    x = rng.standard_normal((3, 64))
    want = x @ (weights * kept).T
    assert np.allclose(matmul(x, halves, meta, paired=True), want)
    single = matmul(torch.from_numpy(x).float(), torch.from_numpy(halves), torch.from_numpy(meta), paired=True)
    assert np.allclose(single, want, rtol=1e-5, atol=1e-4)


def test_many_rows_of_x_and_few_agree():
    """A compiled loop for few, unpacked weights for many; infinite weights and NaN in x come through."""
    weights = torch.randn(20, 48, generator=torch.Generator().manual_seed(4))
    weights[3, 5], weights[4, 1] = float("inf"), -float("inf")
    values, meta = pack(weights, mask(weights))
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(5)) + 4
    many = matmul(x, values, meta)
    few = torch.cat([matmul(x[i : i + 1], values, meta) for i in range(7)])
    assert torch.equal(many.isinf(), few.isinf()) and many.isinf().any()
    assert torch.allclose(many, few, rtol=1e-5, atol=1e-4)
    x[6, 0] = float("nan")
    met = mask(weights)[:, 0]
    assert torch.equal(matmul(x[6:], values, meta)[0].isnan(), met)


def test_traces():
    weights = jnp.asarray(np.random.default_rng(6).standard_normal((4, 16)), jnp.float32)
    values, meta = jax.jit(lambda w: pack(w, mask(w)))(weights)
    assert np.array_equal(jax.jit(lambda v, m: unpack(v, m, k=16))(values, meta), weights * mask(weights))
    constant = jax.jit(lambda x: x * mask(weights))(weights)
    assert np.array_equal(constant, weights * mask(weights))


def test_bad_input():
    weights = torch.ones(2, 8)
    with pytest.raises(ValueError, match="6 columns are no whole groups of 4; pad them with zeros, or leave"):
        mask(torch.ones(2, 6))
    with pytest.raises(ValueError, match="12 columns are no whole groups of 8"):
        mask(torch.ones(2, 12), paired=True)
    with pytest.raises(ValueError, match="row 1, column 5 is NaN"):
        mask(torch.where(torch.arange(16).view(2, 8) == 13, torch.nan, weights))
    wrong = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 1, 0]]).bool()
    with pytest.raises(ValueError, match="the mask keeps 1110 in row 1, group 1; wanted two of four"):
        pack(weights, wrong)
    with pytest.raises(ValueError, match="the mask keeps 01101001 in row 0, group 0; wanted two whole pairs"):
        pack(jnp.ones((1, 8)), jnp.asarray([[0, 1, 1, 0, 1, 0, 0, 1]], bool), paired=True)
    with pytest.raises(ValueError, match=r"a mask of shape \(2, 8\) for weights of shape \(2, 16\)"):
        pack(torch.ones(2, 16), wrong)
    values, meta = pack(weights, mask(weights))
    with pytest.raises(ValueError, match=r"meta has shape \(2, 2\); 2 rows of 8 columns have \(2, 1\)"):
        unpack(values, torch.zeros(2, 2, dtype=torch.uint16), k=8)
    with pytest.raises(ValueError, match="4 values in a row; 16 columns have 8 of them"):
        unpack(values, meta, k=16)
    with pytest.raises(TypeError, match=r"meta is int16|UInt16"):
        unpack(values, meta.view(torch.int16), k=8)
    with pytest.raises(TypeError, match=r"weights is int64|wanted float16"):
        mask(torch.ones(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="scale is float32"):
        matmul(torch.ones(8), values, meta, torch.ones(3))
    with pytest.raises(ValueError, match="4 stored float32 in a row; x has 16 features"):
        matmul(torch.ones(16), values, meta)
