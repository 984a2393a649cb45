"""What the agreement of the backends does not say: the order itself, the bit tricks, stripes, instructions, bad input."""

import os
import re
import subprocess
import sys

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings

from common import ROOT
from kernels.gemm_w4a16 import cases, dequantize, jax_impl, matmul, pack, reference, torch_impl, triton_impl, unpack

torch.set_num_threads(1)


def layer(k=256, n=256, group=128, seed=0):
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(-8, 8, (k, n)).astype(np.int8))
    scales = torch.from_numpy(rng.uniform(0.01, 0.02, (1 if group == -1 else k // group, n)).astype(np.float16))
    return codes, scales


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 2), st.sampled_from([128, -1]), st.integers(0, 2**32 - 1))
def test_what_was_packed_comes_back(groups, strips, group, seed):
    codes, scales = layer(128 * groups, 256 * strips, group, seed)
    packed, stored = pack(codes, scales, group=group)
    again, natural = unpack(packed, stored, group=group)
    assert torch.equal(again, codes) and torch.equal(natural, scales)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_any_words_are_codes(seed):
    """Every pattern of bits is a packed matrix, and packing its codes gives it back."""
    words = torch.from_numpy(np.random.default_rng(seed).integers(-(2**31), 2**31, (8, 512)).astype(np.int32))
    codes, scales = unpack(words, torch.ones(1, 256))
    assert int(codes.min()) >= -8 and int(codes.max()) <= 7
    assert torch.equal(pack(codes, scales)[0], words)


def test_a_thread_holds_the_fragment_of_its_tensor_core_instruction():
    """PTX, mma.m16n8k16, matrix B: lane l has rows 2 (l mod 4) + {0, 1, 8, 9} of column l div 4."""
    codes = torch.zeros(128, 256, dtype=torch.int8)
    row, column = 2 * 3 + 9, 48 + 8 + 5
    codes[row, column] = 1
    packed, _ = pack(codes, torch.ones(1, 256))
    changed = (packed != int(packed[0, 200])).nonzero()
    assert changed.tolist() == [[0, 4 * (4 * 5 + 3) + 3]]  # thread (c = 5, pair = 3), tile 3 of the strip
    nibbles = int(packed[0, changed[0, 1]]) & 0xFFFFFFFF
    assert [nibbles >> 4 * place & 15 for place in range(8)].index(9) == 4 + 2 + 1  # second of two, second block, second half


def test_the_pattern_is_the_papers_table():
    codes = np.arange(16 * 64).reshape(16, 64)
    mine = rearrange(
        codes, "(half pair two) (j block c) -> (c pair j) (two block half)", half=2, pair=4, two=2, j=4, block=2, c=8
    ).reshape(-1)
    tiles = codes.reshape(16, 4, 16).transpose(1, 0, 2).reshape(-1)
    assert np.array_equal(mine, tiles[reference.places()])


@pytest.mark.parametrize(
    "halves", [lambda w: torch_impl.halves(torch.from_numpy(w)).numpy(), lambda w: jax_impl.halves(jnp.asarray(w))]
)
def test_bit_trick_is_exact_for_every_value_at_every_place(halves):
    value, place = np.mgrid[:16, :8].reshape(2, -1)
    rng = np.random.default_rng(0)
    others = rng.integers(0, 2**32, value.size, dtype=np.uint64)
    words = (others & ~(15 << 4 * place.astype(np.uint64)) | value.astype(np.uint64) << 4 * place.astype(np.uint64)).astype(
        np.uint32
    )
    got = np.asarray(halves(words.view(np.int32)))
    assert got.dtype == np.float16 and got.shape == (128, 4, 2)
    assert np.array_equal(got[np.arange(128), place % 4, place // 4], (value - 8).astype(np.float16))


@pytest.mark.parametrize("m", [1, 3, 4, 5, 13])
@pytest.mark.parametrize("group", [128, -1])
def test_compiled_rows_of_every_count(m, group):
    codes, scales = layer(384, 512, group)
    packed, stored = pack(codes, scales, group=group)
    x = torch.randn(m, 384, generator=torch.Generator().manual_seed(m))
    w = dequantize(packed, stored.double(), group=group)
    torch.testing.assert_close(matmul(x, packed, stored, group=group).double(), x.double() @ w, rtol=0, atol=1e-5)


def test_compiled_in_several_threads():
    codes, scales = layer(1024, 1024)
    packed, stored = pack(codes, scales)
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    one = matmul(x, packed, stored)
    torch.set_num_threads(3)
    try:
        assert torch.equal(matmul(x, packed, stored), one)
    finally:
        torch.set_num_threads(1)


def test_agrees_with_torchs_own_product():
    codes, scales = layer(256, 256)
    packed, stored = pack(codes, scales)
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(matmul(x, packed, stored), cases.torch_int4(x, packed, stored, group=128), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_float32_sums(dtype):
    codes, scales = layer(256, 256)
    packed, stored = pack(codes, scales)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = x.double() @ dequantize(packed, stored.double())
    assert (
        torch.equal(matmul(x, packed, stored), want.to(dtype)) or (matmul(x, packed, stored).double() - want).abs().max() < 0.02
    )


@pytest.mark.parametrize("blocks", [1, 3, 5, 7])
def test_stripes_of_any_length_give_one_result_and_leave_the_locks(blocks):
    """Columns are shared by up to blocks programs; sums go from the bottom up."""
    codes, scales = layer(512, 256)
    packed, stored = pack(codes, scales)
    x = torch.randn(20, 512, generator=torch.Generator().manual_seed(2))
    locks = torch.zeros(64, dtype=torch.int32)
    y = triton_impl.matmul(x, packed, stored, locks=locks, blocks=blocks)
    torch.testing.assert_close(y, matmul(x, packed, stored), rtol=0, atol=1e-4)
    assert int(locks.abs().sum()) == 0


def test_kernel_of_the_machine_is_the_papers():
    """Asynchronous copies of 16 bytes, ldmatrix, tensor cores, and shared memory below 96 KiB in code for an A100."""
    code = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.gemm_w4a16.triton_impl import shipped
config = next(each for each in shipped() if each.id == "fp16-m16")
aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(config.signature.values()) if kind.startswith("*")}
source = ASTSource(fn=config.kernel, signature=config.signature, constexprs=config.constexprs, attrs=aligned)
found = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=config.options)
print(found.metadata.shared, config.options["num_stages"])
print(found.asm["ptx"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environment)
    first, _, text = done.stdout.partition("\n")
    shared, stages = map(int, first.split())
    assert shared <= 96 * 1024 and stages == 4
    assert re.search(r"cp\.async\.cg\.shared\.global [^\n]*, 0x10", text), "words are copied 16 bytes at a time"
    assert "ldmatrix.sync" in text and "mma.sync.aligned.m16n8k16" in text
    assert "1677747200" in text or "0x64006400" in text or "25600" in text, "0x6400, the bits of 1024, are set into the words"


def test_large_activations_do_not_cancel():
    codes, scales = layer(256, 256)
    packed, stored = pack(codes, scales)
    x = 1000 + torch.rand(1, 256, generator=torch.Generator().manual_seed(0))
    want = x.double() @ dequantize(packed, stored.double())
    assert float((matmul(x, packed, stored) - want).abs().max() / want.abs().max()) < 1e-5


def test_bad_input():
    codes, scales = layer()
    packed, stored = pack(codes, scales)
    with pytest.raises(ValueError, match="k is 200 and n is 256; wanted k a multiple of 128 and n a multiple of 256"):
        pack(torch.zeros(200, 256, dtype=torch.int8), torch.ones(1, 256), group=-1)
    with pytest.raises(ValueError, match="k is 128 and n is 100"):
        pack(torch.zeros(128, 100, dtype=torch.int8), torch.ones(1, 100))
    with pytest.raises(ValueError, match="group is 64; wanted 128, or -1"):
        pack(codes, scales, group=64)
    with pytest.raises(TypeError, match=r"wanted int8 codes|Int8"):
        pack(codes.float(), scales)
    with pytest.raises(TypeError, match=r"codes is a list|Int8"):
        pack([[1]], scales)
    with pytest.raises(ValueError, match=r"codes reach from -9 to"):
        pack(torch.where(codes == -8, -9, codes).to(torch.int8), scales)
    for value in (0.0, float("nan"), float("inf")):
        wrong = scales.clone()
        wrong[1, 17] = value
        with pytest.raises(ValueError, match="the scale of column 17 in group 1 is"):
            pack(codes, wrong)
        with pytest.raises(ValueError, match="the scale of column 17 in group 1 is"):
            pack(jnp.asarray(codes.numpy()), jnp.asarray(wrong.numpy()))
    with pytest.raises(ValueError, match=r"scales has shape \(1, 256\); k = 256, n = 256, group = 128 want \(2, 256\)"):
        matmul(torch.zeros(1, 256), packed, stored[:1])
    with pytest.raises(ValueError, match="the weights have k = 256"):
        matmul(torch.zeros(1, 128), packed, stored)
    with pytest.raises(TypeError, match=r"packed has dtype torch.int64|Int32"):
        unpack(packed.long(), stored)
    with pytest.raises(TypeError, match=r"x has dtype torch.int32|Float"):
        matmul(torch.zeros(1, 256, dtype=torch.int32), packed, stored)
    with pytest.raises(ValueError, match="locks are not zero"):
        matmul(torch.zeros(1, 256), packed, stored, locks=torch.ones(64, dtype=torch.int32))
    with pytest.raises(ValueError, match="wanted int32 zeros, 4 or more"):
        matmul(torch.zeros(1, 256), packed, stored, locks=torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="computes in float32, got float64"):
        matmul(torch.zeros(1, 256, dtype=torch.float64), packed, stored, backend="triton")
