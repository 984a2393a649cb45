"""The noise beyond the generic tests: known answers, independent generators, its distribution, slices, memory, bad input."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common.allocations import Allocations
from papers.zo2.kernel import gaussian, perturb, philox, seed_words
from papers.zo2.kernel.torch_impl import CHUNK

pytestmark = pytest.mark.xdist_group("zo2_kernel")

KNOWN = [  # Random123, kat_vectors, philox4x32 10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


def _python(counter, key, bits):
    """Philox4xW-10 for words of 32 or 64 bits in Python's integers."""
    multipliers = {32: (0xD2511F53, 0xCD9E8D57), 64: (0xD2E7470EE14C6C93, 0xCA5A826395121157)}[bits]
    weyl = {32: (0x9E3779B9, 0xBB67AE85), 64: (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)}[bits]
    low, (c0, c1, c2, c3), (k0, k1) = 2**bits, map(int, counter), map(int, key)
    for _ in range(10):
        a, b = multipliers[0] * c0, multipliers[1] * c2
        c0, c1, c2, c3 = (b // low) ^ c1 ^ k0, b % low, (a // low) ^ c3 ^ k1, a % low
        k0, k1 = (k0 + weyl[0]) % low, (k1 + weyl[1]) % low
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
@pytest.mark.parametrize("backend", ["reference", "torch", "triton", "jax", "pallas"])
def test_known_answers(backend, counter, key, words):
    as_array = {"reference": np.array, "jax": jnp.asarray, "pallas": jnp.asarray}.get(backend, torch.from_numpy)
    found = philox(as_array(_words(counter)[None]), as_array(_words(key)), backend=backend)
    assert np.asarray(found)[0].tolist() == _words(words).tolist()


def test_the_scheme_is_that_of_numpy():
    """One text in Python's integers gives NumPy's Philox with 64-bit words, and this one with 32."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        counter, key = rng.integers(0, 2**63, 4, dtype=np.uint64), rng.integers(0, 2**63, 2, dtype=np.uint64)
        theirs = np.random.Philox(counter=counter, key=key)
        counter[0] += 1  # NumPy counts before it draws
        assert theirs.random_raw(4).tolist() == _python(counter, key, 64)
        small, short = counter.astype(np.uint32), key.astype(np.uint32)
        assert philox(small[None], short)[0].tolist() == _python(small, short, 32)


def test_it_is_normal():
    z = gaussian(np.empty(200_000), seed=7)
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert abs(z.mean()) < 0.01 and abs(z.var() - 1) < 0.01
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) < 0.01
    other = gaussian(np.empty(200_000), seed=7, parameter=1)
    assert abs(np.corrcoef(z, other)[0, 1]) < 0.01 and abs(np.corrcoef(z, gaussian(z, seed=8))[0, 1]) < 0.01


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2 * CHUNK), st.integers(0, 300))
def test_a_slice_is_a_part_of_the_whole(seed, parameter, offset, count):
    options = {"scale": 0.5, "seed": seed, "parameter": parameter}
    whole = perturb(torch.zeros(2 * CHUNK + 300), **options)
    part = perturb(torch.zeros(count), **options, offset=offset)
    assert torch.equal(part, whole[offset : offset + count])


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_in_place_equals_the_pure_form(backend, dtype):
    theta = torch.randn(3, 777).to(dtype)
    options = {"scale": 0.1, "keep": 0.9, "seed": 3, "backend": backend}
    want = perturb(theta, **options)
    assert perturb(theta, **options, out=theta) is theta
    assert torch.equal(theta, want)


def test_plain_torch_operations_give_the_compiled_numbers(monkeypatch):
    """What a GPU without Triton would run: the same integers, and so the same normals up to the last bits of the sines."""
    from papers.zo2.kernel import torch_impl

    theta = torch.zeros(5000, dtype=torch.float64)
    want = perturb(theta, scale=1.0, seed=9, parameter=2)
    monkeypatch.setattr(torch_impl, "_compiled", torch_impl._plain)
    assert torch.equal(perturb(theta, scale=1.0, seed=9, parameter=2), want)
    single = perturb(theta.float(), scale=1.0, seed=9, parameter=2)
    assert (single - want).abs().max() < 2e-6


def test_z_is_never_whole_in_memory():
    theta = torch.zeros(2**22)
    with Allocations(theta) as counted:
        held = counted.live
        perturb(theta, scale=1.0, seed=1, out=theta)
    assert counted.peak - held < 0.01 * theta.nbytes


def test_seeds_as_words():
    seed = 2**63 + 12345
    want = gaussian(torch.empty(9), seed=seed)
    assert torch.equal(gaussian(torch.empty(9), seed=torch.from_numpy(seed_words(seed))), want)
    np.testing.assert_allclose(
        gaussian(jnp.empty(9), seed=jnp.asarray(seed_words(seed)), parameter=jnp.uint32(0)), want, rtol=1e-5
    )


def test_bad_input():
    theta = torch.zeros(4)
    for options, what in (
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": 1, "parameter": 2**32}, "parameter is"),
        ({"seed": 1, "offset": -1}, "elements -1"),
        ({"seed": 1, "offset": 2**34}, "within 0 to 2\\^34"),
        ({"seed": 1, "out": torch.zeros(5)}, "out is"),
        ({"seed": 1, "out": torch.zeros(8)[::2]}, "contiguous"),
    ):
        with pytest.raises(ValueError, match=what):
            perturb(theta, scale=1.0, **options)
    with pytest.raises(TypeError):
        gaussian(torch.zeros(3, dtype=torch.int64), seed=1)
    with pytest.raises(TypeError, match="torch tensors"):
        perturb(jnp.zeros(4), scale=1.0, seed=1, out=jnp.zeros(4))
    with pytest.raises(TypeError):
        philox(np.zeros((1, 4), np.int64), np.zeros(2, np.uint32))
    with pytest.raises((TypeError, ValueError)):
        philox(np.zeros((1, 3), np.uint32), np.zeros(2, np.uint32))
