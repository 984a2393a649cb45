"""What the agreement of the backends does not say: both directions, other people's layouts, bad input."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given

from kernels.bitpack import pack, unpack
from kernels.bitpack.layout import group, terms


@given(st.integers(1, 8), st.booleans(), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_what_was_packed_comes_back(bits, high_first, count, seed):
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, (2, count), dtype=np.uint8))
    packed = pack(values, bits=bits, high_first=high_first)
    assert packed.shape == (2, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits=bits, count=count, high_first=high_first), values)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_the_stream_is_one_long_number(bits, drawn):
    values = np.array(drawn, np.uint8) & (2**bits - 1)
    total = -(-len(values) * bits // 8)
    high = sum(int(v) << (8 * total - bits * (i + 1)) for i, v in enumerate(values))
    low = sum(int(v) << (bits * i) for i, v in enumerate(values))
    assert pack(values, bits=bits).tobytes() == high.to_bytes(total, "big")
    assert pack(values, bits=bits, high_first=False).tobytes() == low.to_bytes(total, "little")


@pytest.mark.parametrize("high_first", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_terms_cover_every_bit_once(bits, high_first):
    values, width = group(bits)
    seen = np.zeros((width, 8), int)
    for byte, value, shift in terms(bits, high_first):
        assert value < values
        seen[byte, max(shift, 0) : min(bits + shift, 8)] += 1
    assert (seen == 1).all()


def test_bytes_are_the_values_of_eight_bits():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack(values, bits=8), values)


def test_first_value_in_the_high_half():
    assert pack(torch.tensor([1, 15, 7], dtype=torch.uint8), bits=4).tolist() == [0x1F, 0x70]
    assert pack(torch.tensor([1, 15, 7], dtype=torch.uint8), bits=4, high_first=False).tolist() == [0xF1, 0x07]


def test_bad_input():
    values = torch.tensor([1, 9], dtype=torch.uint8)
    with pytest.raises(ValueError, match="a value is 9; wanted values below 2\\^3"):
        pack(values, bits=3)
    with pytest.raises(ValueError, match="a value is 9"):
        pack(jnp.array([1, 9], jnp.uint8), bits=2)
    for bits in (0, 9, True):
        with pytest.raises(ValueError, match="wanted 1 to 8"):
            pack(values, bits=bits)
    with pytest.raises(TypeError, match=r"wanted uint8|UInt8"):
        unpack(values.int(), bits=4, count=4)
    with pytest.raises(ValueError, match="2 bytes in a row; 5 values of 4 bits fill 3"):
        unpack(values, bits=4, count=5)
    with pytest.raises(ValueError, match="fill 2, pass the count"):
        unpack(pack(values, bits=4), bits=4, count=3)


def test_traces():
    packed = jax.jit(lambda v: pack(v, bits=5))(jnp.array([3, 31, 9], jnp.uint8))
    assert unpack(packed, bits=5, count=3).tolist() == [3, 31, 9]
