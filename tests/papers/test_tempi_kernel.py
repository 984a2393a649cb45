"""The packing kernel beyond the generic tests: NumPy's own strides, the inverse, words, and every bad input."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from papers.tempi.kernel import strided_pack, strided_unpack
from papers.tempi.kernel.cases import LOOPS
from papers.tempi.kernel.torch_impl import word

pytestmark = pytest.mark.xdist_group("tempi_kernel")

loops = st.lists(st.tuples(st.integers(1, 5), st.integers(-24, 40)), max_size=3)


@settings(max_examples=12)
@given(st.integers(1, 24), loops, st.integers(0, 9))
def test_it_is_a_strided_view(length, loops, gap):
    counts, strides = (length, *(n for n, _ in loops)), (1, *(s for _, s in loops))
    reach = [(n - 1) * s for n, s in zip(counts, strides, strict=True)]
    start = gap - sum(min(0, each) for each in reach)
    memory = np.random.default_rng(0).integers(0, 256, start + sum(max(0, each) for each in reach) + 1, dtype=np.uint8)
    want = np.lib.stride_tricks.as_strided(memory[start:], counts[::-1], strides[::-1]).reshape(-1)
    assert np.array_equal(strided_pack(memory, start=start, counts=counts, strides=strides), want)
    for backend in ("torch", "triton"):
        got = strided_pack(torch.from_numpy(memory), start=start, counts=counts, strides=strides, backend=backend)
        assert np.array_equal(got.numpy(), want), backend


@settings(max_examples=12)
@given(st.permutations([(3, 64), (2, 200), (4, 12)]), st.sampled_from([1, 2, 4, 8, 12]))
def test_unpack_puts_back_what_pack_took(order, length):
    counts, strides = (length, *(n for n, _ in order)), (1, *(s for _, s in order))
    memory = torch.arange(500, dtype=torch.int64).to(torch.uint8)
    packed = strided_pack(memory, start=8, counts=counts, strides=strides)
    target = torch.full_like(memory, 99)
    result = strided_unpack(packed, target, start=8, counts=counts, strides=strides)
    changed = strided_unpack(torch.ones_like(packed), torch.zeros_like(memory), start=8, counts=counts, strides=strides).bool()
    assert torch.equal(result[changed], memory[changed]) and (result[~changed] == 99).all() and (target == 99).all()
    assert int(changed.sum()) == math.prod(counts)
    for backend in ("torch", "triton"):
        place = target.clone()
        assert strided_unpack(packed, place, start=8, counts=counts, strides=strides, out=place, backend=backend) is place
        assert torch.equal(place, result)


@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8])
def test_addresses_that_are_not_aligned(offset):
    """The words fit the address too: a slice of memory may begin anywhere."""
    whole = torch.randint(0, 256, (12_000,), dtype=torch.uint8)
    start, counts, strides, _ = LOOPS["rows of 8 words"]
    part = whole[offset:]
    want = strided_pack(part.numpy(), start=start, counts=counts, strides=strides)
    for backend in ("torch", "triton"):
        assert np.array_equal(strided_pack(part, start=start, counts=counts, strides=strides, backend=backend).numpy(), want)


@pytest.mark.parametrize(
    ("numbers", "width"), [((0, 64, 512), 16), ((8, 64, 512), 8), ((0, 12, 512), 4), ((3, 64), 1), ((0, 6, -10), 2), ((16,), 16)]
)
def test_words(numbers, width):
    assert word(*numbers) == width


@given(st.integers(1, 6), st.integers(1, 6), st.integers(-12, 12), st.integers(-12, 12))
def test_unpacking_twice_to_one_byte_is_refused(n, m, first, second):
    counts, strides = (2, n, m), (1, first, second)
    places = [i * first + j * second + k for i in range(n) for j in range(m) for k in range(2)]
    low = min(places)
    assume(len(set(places)) < len(places))
    with pytest.raises(ValueError, match="twice"):
        strided_unpack(
            np.zeros(len(places), np.uint8), np.zeros(max(places) - low + 1, np.uint8), start=-low, counts=counts, strides=strides
        )


def test_bad_input():
    memory, packed = np.zeros(64, np.uint8), np.zeros(8, np.uint8)
    good = {"start": 0, "counts": (4, 2), "strides": (1, 8)}
    for change, what in (
        ({"counts": (4,)}, "of each"),
        ({"counts": (4, -1)}, "negative"),
        ({"strides": (2, 8)}, r"strides\[0\] 1"),
        ({"counts": (), "strides": ()}, "1 to 5"),
        ({"counts": (1,) * 6, "strides": (1,) * 6}, "1 to 5"),
        ({"start": 53}, "bytes 53 to 65 of an array of 64"),
        ({"start": 0, "strides": (1, -8)}, "bytes -8"),
    ):
        with pytest.raises(ValueError, match=what):
            strided_pack(memory, **{**good, **change})
        with pytest.raises(ValueError, match=what):
            strided_unpack(packed, memory, **{**good, **change})
    with pytest.raises(ValueError, match="7 bytes, the block 8"):
        strided_unpack(packed[:7], memory, **good)
    with pytest.raises(ValueError, match="another array"):
        strided_unpack(
            torch.from_numpy(packed), torch.zeros(64, dtype=torch.uint8), **good, out=torch.zeros(64, dtype=torch.uint8)
        )
    for wrong in (np.zeros(64, np.int32), np.zeros((8, 8), np.uint8), torch.zeros(64), jnp.zeros(64)):
        with pytest.raises(Exception, match=r"uint8|Type-check|UInt8"):
            strided_pack(wrong, **good)
    with pytest.raises(TypeError, match="framework"):
        strided_unpack(packed, torch.zeros(64, dtype=torch.uint8), **good)
    assert strided_pack(memory, start=10**9, counts=(4, 0), strides=(1, 8)).shape == (0,)
