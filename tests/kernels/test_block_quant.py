"""What the agreement of the backends does not say: bitsandbytes' own bits, error bounds, bad input."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given

from kernels.bitpack import pack
from kernels.block_quant import (
    BLOCKS,
    code_book,
    dequantize_blockwise,
    double_dequantize,
    double_quantize,
    quantize_blockwise,
    stored_bits,
)

BOOKS = ("nf4", "fp4", "int4", "int8", "dynamic_signed", "dynamic_unsigned")


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("bitsandbytes.functional")


def test_code_books_are_those_of_bitsandbytes(peer):
    for name in ("nf4", "fp4"):
        theirs = peer.get_4bit_type(name, device="cpu").numpy()
        assert code_book(name).tolist() == theirs[stored_bits(name)].tolist()
    for name, signed in (("dynamic_signed", True), ("dynamic_unsigned", False)):
        assert code_book(name).tobytes() == peer.create_dynamic_map(signed).numpy().tobytes()


@pytest.mark.parametrize("block", [32, 64, 512])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_four_bits_are_those_of_bitsandbytes(peer, name, block, kind):
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).to(kind)
    x[3:5] = 0
    packed, state = peer.quantize_4bit(x, blocksize=block, quant_type=name)
    indices, absmax = quantize_blockwise(x, code_book(name), block=block)
    mine = pack(torch.from_numpy(stored_bits(name))[indices.long()], bits=4)
    assert torch.equal(mine, packed.flatten())
    assert torch.equal(absmax, state.absmax)
    values = dequantize_blockwise(indices, absmax, code_book(name), block=block)
    assert torch.equal(values.to(kind), peer.dequantize_4bit(packed, state).flatten())


def test_double_quantisation_is_that_of_bitsandbytes_on_its_grid(peer):
    w = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1))
    _, theirs = peer.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    _, absmax = quantize_blockwise(w, code_book("nf4"))
    indices, scales, offset = double_quantize(absmax)
    assert theirs.state2.blocksize == 256 and torch.equal(theirs.state2.absmax, scales) and theirs.offset == offset
    # Its CPU code looks the nearest value up for one of 65536 steps between -1 and 1, so some go to a neighbour.
    step = theirs.absmax.int() - indices.int()
    assert step.abs().max() <= 1 and (step != 0).float().mean() < 0.01
    scaled = (absmax - offset) * (1 / scales).repeat_interleave(256)
    snapped = torch.round((scaled.double() + 1) * 32767.5) / 32767.5 - 1
    assert torch.equal(quantize_blockwise(torch.cat([torch.ones(1), snapped[:4095].float()]), code_book("dynamic_signed"),
                                          block=4096)[0][1:], theirs.absmax[:4095])  # fmt: skip


@given(
    st.sampled_from(BOOKS), st.sampled_from([32, 64, 256]), st.integers(1, 700), st.integers(-60, 60), st.integers(0, 2**32 - 1)
)
def test_error_is_at_most_half_a_gap(name, block, count, exponent, seed):
    code = code_book(name)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32)) * 2.0**exponent
    if name == "dynamic_unsigned":
        x = x.abs()
    indices, absmax = quantize_blockwise(x, code, block=block)
    values = dequantize_blockwise(indices, absmax, code, block=block)
    scale = absmax.repeat_interleave(block)[:count]
    quotient = (x / scale).clamp(float(code[0]), 1).double()
    nearest = (quotient[:, None] - torch.tensor(code).double()).abs().min(dim=1).values
    beyond = (x / scale - (x / scale).clamp(float(code[0]), 1)).abs()
    assert ((values - x).abs() <= (nearest + beyond) * scale * (1 + 1e-5) + scale * 1e-6).all()


@given(st.sampled_from(["nf4", "int4", "dynamic_signed"]), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_quantised_values_are_fixed_points(name, count, seed):
    code = code_book(name)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))
    x[::32] = 4.0
    indices, absmax = quantize_blockwise(x, code, block=32)
    again = quantize_blockwise(dequantize_blockwise(indices, absmax, code, block=32), code, block=32)
    assert torch.equal(again[0], indices) and torch.equal(again[1], absmax)


def test_a_block_of_zeros():
    indices, absmax = quantize_blockwise(torch.zeros(64), code_book("fp4"))
    assert absmax.tolist() == [0.0] and (indices == 7).all()
    assert (dequantize_blockwise(indices, absmax, code_book("fp4")) == 0).all()


@pytest.mark.parametrize("count", [1, 255, 256, 257, 70_000])
def test_double_quantisation_comes_back_near(count):
    absmax = torch.rand(count, generator=torch.Generator().manual_seed(count)) + 0.5
    indices, scales, offset = double_quantize(absmax)
    assert indices.shape == (count,) and scales.shape == (-(-count // 256),)
    assert (double_dequantize(indices, scales, offset) - absmax).abs().max() < 0.01
    theirs = double_quantize(jnp.asarray(absmax.numpy()))
    assert abs(float(theirs[2]) - float(offset)) < 1e-6
    assert double_quantize(absmax.numpy())[0].shape == (count,)


def test_nothing_to_double_quantise():
    indices, scales, offset = double_quantize(torch.zeros(0))
    assert double_dequantize(indices, scales, offset).shape == (0,)


def test_threads_do_not_change_a_bit():
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        indices, absmax = quantize_blockwise(x, code_book("dynamic_signed"), block=256)
        found.append((indices, absmax, dequantize_blockwise(indices, absmax, code_book("dynamic_signed"), block=256)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_on_the_meta_device_shapes_alone():
    indices, absmax = quantize_blockwise(torch.empty(10, 100, device="meta"), code_book("nf4"))
    assert indices.shape == (1000,) and absmax.shape == (16,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2e38])
@pytest.mark.parametrize("name", ["nf4", "dynamic_signed"])
def test_numbers_that_cannot_be_quantised_are_named(bad, name):
    x = np.ones((4, 64), np.float32)
    x[2, 5] = bad
    for array in (torch.from_numpy(x), jnp.asarray(x)):
        with pytest.raises(ValueError, match=r"x has \S+ at place 133 of 256; wanted finite"):
            quantize_blockwise(array, code_book(name))


def test_bad_input():
    x, code = torch.ones(64), code_book("nf4")
    for block in (0, 16, 48, 96, 8192):
        with pytest.raises(ValueError, match="wanted a power of two"):
            quantize_blockwise(x, code, block=block)
    with pytest.raises(ValueError, match="there are nf4"):
        code_book("nf5")
    with pytest.raises(ValueError, match="not sorted"):
        quantize_blockwise(x, code[::-1].copy())
    with pytest.raises(ValueError, match="2 to 256 values"):
        quantize_blockwise(x, np.zeros(257, np.float32))
    with pytest.raises(TypeError, match=r"floating point|Float"):
        quantize_blockwise(x.int(), code)
    indices, absmax = quantize_blockwise(x, code)
    with pytest.raises(ValueError, match="1 scales for 64 indices; blocks of 32 want 2"):
        dequantize_blockwise(indices, absmax, code, block=32)
    with pytest.raises(TypeError, match=r"indices is int64|UInt8"):
        dequantize_blockwise(indices.long(), absmax, code)
    with pytest.raises(ValueError, match="2 scales for 64 indices"):
        double_dequantize(indices, torch.ones(2), torch.zeros(()))
    assert BLOCKS[0] == 32


def test_traces():
    x = jnp.linspace(-1, 1, 64)
    assert (jax.jit(lambda x: quantize_blockwise(x, code_book("nf4"))[0])(x) == quantize_blockwise(x, code_book("nf4"))[0]).all()
