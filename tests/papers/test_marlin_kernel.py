"""Sparse-MARLIN's order: other people's metadata, both directions, stripes, bad input."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.sparse import _semi_structured_conversions as theirs

from kernels import sparse24
from papers.marlin.kernel import reference, sparse_matmul, sparse_pack, sparse_unpack, triton_impl

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("marlin")


def layer(k=256, n=256, group=128, seed=0):
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(-8, 8, (k, n)).astype(np.int8))
    mask = sparse24.mask(torch.from_numpy(rng.standard_normal((n, k)))).T.contiguous()
    scales = torch.from_numpy(rng.uniform(0.01, 0.02, (1 if group == -1 else k // group, n)).astype(np.float16))
    return codes, scales, mask


@settings(max_examples=12)
@given(st.integers(1, 3), st.sampled_from([128, -1]), st.integers(0, 2**32 - 1))
def test_what_was_packed_comes_back(groups, group, seed):
    codes, scales, mask = layer(128 * groups, 256, group, seed)
    again, natural, kept = sparse_unpack(*sparse_pack(codes, scales, mask, group=group), group=group)
    assert torch.equal(again, codes * mask) and torch.equal(natural, scales) and torch.equal(kept, mask)


def test_metadata_is_torchs_in_another_order():
    """torch's own conversion for the sparse tensor cores, on the transposed weights: the same words; it leaves rows in groups of 32
    where Sparse-Marlin spreads 64 over the loads of a thread."""
    codes, scales, mask = layer(256, 512)
    codes[codes == 0] = 1
    dense = (codes * mask).T.contiguous()
    _, meta = theirs.sparse_semi_structured_from_dense_cutlass(dense.half())
    _, mine, _ = sparse_pack(codes * mask, scales)
    places = theirs._calculate_meta_reordering_scatter_offsets(512, 16, torch.int16, "cpu")
    natural = mine.reshape(-1)[torch.from_numpy(reference.offsets(512, 16))]
    assert meta.dtype == mine.dtype and torch.equal(natural, meta.reshape(-1)[places])


def test_zeros_fill_up_what_is_missing():
    codes = torch.zeros(128, 256, dtype=torch.int8)
    codes[2, 5] = 3
    again, _, mask = sparse_unpack(*sparse_pack(codes, torch.ones(1, 256)))
    assert torch.equal(again, codes) and bool((mask.reshape(32, 4, 256).sum(1) == 2).all()) and bool(mask[2, 5])


def test_three_bits_and_an_eighth():
    codes, scales, mask = layer(1024, 512)
    stored = sparse_pack(codes, scales, mask)
    assert 8 * sum(each.nbytes for each in stored) == 3.125 * codes.numel()


@pytest.mark.parametrize("m", [1, 7])
def test_compiled_rows(m):
    codes, scales, mask = layer(384, 256)
    stored = sparse_pack(codes, scales, mask)
    x = torch.randn(m, 384, generator=torch.Generator().manual_seed(m))
    w = ((codes * mask).double().reshape(3, 128, 256) * scales.double()[:, None]).reshape(384, 256)
    torch.testing.assert_close(sparse_matmul(x, *stored).double(), x.double() @ w, rtol=0, atol=1e-5)


@pytest.mark.parametrize("blocks", [3, 5])
def test_stripes_of_any_length_give_one_result(blocks):
    codes, scales, mask = layer(512, 256)
    stored = sparse_pack(codes, scales, mask)
    x = torch.randn(18, 512, generator=torch.Generator().manual_seed(2))
    y = triton_impl.sparse_matmul(x, *stored, blocks=blocks)
    torch.testing.assert_close(y, sparse_matmul(x, *stored), rtol=0, atol=1e-4)


def test_bad_input():
    codes, scales, mask = layer()
    stored = sparse_pack(codes, scales, mask)
    dense = torch.ones(256, 256, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"column 0 keeps more than two of the four weights of group 0 \(rows 0 to 3\)"):
        sparse_pack(dense, scales)
    three = codes * mask
    three[4 * 9 : 4 * 9 + 3, 30] = 1
    for wrong in (three, jnp.asarray(three.numpy())):
        with pytest.raises(ValueError, match="column 30 keeps more than two of the four weights of group 9"):
            sparse_pack(wrong, scales if isinstance(wrong, torch.Tensor) else jnp.asarray(scales.numpy()))
    one = mask.clone()
    one[:4, 3] = torch.tensor([True, False, False, False])
    with pytest.raises(ValueError, match="other than two of the four weights of column 3, group 0"):
        sparse_pack(codes, scales, one)
    with pytest.raises((ValueError, TypeError), match=r"mask is bool \(128, 256\)|mask"):
        sparse_pack(codes, scales, mask[:128])
    with pytest.raises(ValueError, match="k is 200"):
        sparse_pack(dense[:200], scales[:1], group=-1)
    with pytest.raises(TypeError, match=r"values are int64|Int32"):
        sparse_matmul(torch.zeros(1, 256), stored[0].long(), *stored[1:])
    with pytest.raises((ValueError, TypeError), match="meta"):
        sparse_matmul(torch.zeros(1, 256), stored[0], stored[1][:4], stored[2])
    with pytest.raises(ValueError, match="the weights have k = 256"):
        sparse_matmul(torch.zeros(1, 128), *stored)
    with pytest.raises(ValueError, match="computes in float32, got float64"):
        sparse_matmul(torch.zeros(1, 256, dtype=torch.float64), *stored, backend="triton")
