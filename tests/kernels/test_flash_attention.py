"""What the agreement of the backends does not say: properties of the operation, independent peers, bad input."""

import inspect
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given

from common import ROOT
from common.allocations import Allocations
from kernels.flash_attention import flash_attention
from kernels.flash_attention.cases import jax_attention, sdpa
from kernels.flash_attention.torch_impl import Mask


def _draw(seq, keys=None, dim=8, value_dim=12, heads=(4, 2), batch=2, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    keys = seq if keys is None else keys
    shapes = [(batch, heads[0], seq, dim), (batch, heads[1], keys, dim), (batch, heads[1], keys, value_dim)]
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes]


def _visible(seq, keys, causal=False, window=None, sinks=0, query_start=0, key_start=0):
    """The mask pair by pair, as one would say it."""
    found = np.zeros((seq, keys), bool)
    for i, j in np.ndindex(seq, keys):
        at, key = query_start + i, key_start + j
        near = window is None or at - key < window or key < sinks
        found[i, j] = not causal or (key <= at and near)
    return found


MASKS = st.fixed_dictionaries(
    {
        "causal": st.just(True),
        "window": st.none() | st.integers(1, 20),
        "sinks": st.integers(0, 12),
        "query_start": st.integers(0, 50),
        "key_start": st.integers(0, 10) | st.integers(20, 50),
    }
).map(lambda mask: mask if mask["window"] else {**mask, "sinks": 0})


FAR_SINKS = {"causal": True, "window": 5, "sinks": 4, "query_start": 20, "key_start": 1}


@given(st.integers(1, 40), st.integers(1, 40), MASKS, st.integers(1, 20), st.integers(1, 20))
@example(9, 30, FAR_SINKS, 4, 8)
def test_every_mask_in_any_tiles_is_softmax_over_what_is_seen(seq, keys, mask, rows, width):
    q, k, v = _draw(seq, keys, heads=(2, 1), batch=1)
    seen = torch.from_numpy(_visible(seq, keys, **mask))
    scores = (q @ k.mT * 0.3).masked_fill(~seen, -torch.inf)
    o, lse = flash_attention(q, k, v, **mask, scale=0.3, block=(rows, width))
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(o, torch.nan_to_num(torch.softmax(scores, -1)) @ v, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 30), st.integers(1, 60), MASKS, st.integers(1, 16))
@example(9, 30, FAR_SINKS, 8)
def test_tiles_hold_every_pair_once_and_mark_the_partial_ones(seq, keys, mask, width):
    sinks, shift = max(mask["sinks"] - mask["key_start"], 0), mask["query_start"] - mask["key_start"]
    seen, met = _visible(seq, keys, **mask), np.zeros(keys, int)
    for at, hidden in Mask(True, mask["window"], sinks, shift).tiles(0, seq, keys, width):
        met[at] += 1
        assert at.stop - at.start <= width
        assert hidden or seen[:, at].all(), "a tile with hidden pairs says so"
    assert met.max() <= 1
    assert met[seen.any(0)].all()


@given(st.integers(0, 40), st.integers(0, 40))
@example(0, 0)
def test_halves_of_the_keys_merge_by_lse(before, after):
    """Values, and the gradients that reach both halves through their lse, also where a half shows a query nothing."""
    q, k, v = (x.requires_grad_() for x in _draw(20, before + after, heads=(2, 2), batch=1))
    mask = {"causal": True, "query_start": 15, "block": (8, 8)}
    whole, lse = flash_attention(q, k, v, **mask)
    o1, lse1 = flash_attention(q, k[:, :, :before], v[:, :, :before], **mask)
    o2, lse2 = flash_attention(q, k[:, :, before:], v[:, :, before:], key_start=before, **mask)
    merged = torch.logaddexp(lse1, lse2)
    safe = merged.masked_fill(merged == -torch.inf, 0)
    o = torch.exp(lse1 - safe)[..., None] * o1 + torch.exp(lse2 - safe)[..., None] * o2
    torch.testing.assert_close(merged, lse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(o, whole, rtol=1e-12, atol=1e-12)
    seen = lse > -torch.inf
    found = [
        torch.autograd.grad(out.sin().sum() + level[seen].cos().sum(), (q, k, v), allow_unused=True)
        for out, level in ((o, merged), (whole, lse))
    ]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["torch", "triton", "jax", "pallas"])
def test_nothing_that_arrives_at_a_blind_query_goes_on(backend):
    """A merge of two results that saw nothing sends NaN back."""
    dtype = torch.float32
    q, k, v = _draw(20, 20, dtype=dtype, heads=(1, 1), batch=1, dim=16, value_dim=16)
    mask = {"causal": True, "query_start": 0, "key_start": 10, "backend": backend}
    blind = torch.arange(20) < 10
    do, dlse = torch.ones(1, 1, 20, 16), torch.ones(1, 1, 20)
    do[:, :, blind], dlse[:, :, blind] = torch.nan, torch.nan
    if backend in ("torch", "triton"):
        inputs = [x.requires_grad_() for x in (q, k, v)]
        gradients = [x.numpy() for x in torch.autograd.grad(flash_attention(q, k, v, **mask), inputs, (do, dlse))]
    else:
        arrays = [jnp.asarray(x.numpy()) for x in (q, k, v)]
        _, pull = jax.vjp(jax.jit(lambda *x: flash_attention(*x, **mask)), *arrays)
        gradients = [np.asarray(x) for x in pull((jnp.asarray(do.numpy()), jnp.asarray(dlse.numpy())))]
    assert all(np.isfinite(x).all() for x in gradients)
    assert not gradients[0][:, :, :10].any()
    assert gradients[0][:, :, 10:].any(axis=-1).all()


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_of_one_output_alone(backend, used):
    q, k, v = (x.requires_grad_() for x in _draw(19, 23, 16, 16, dtype=torch.float32))
    got = torch.autograd.grad(flash_attention(q, k, v, backend=backend)[used].sin().sum(), (q, k, v), allow_unused=True)
    scores = q @ k.repeat_interleave(2, 1).mT / 4
    want = (torch.softmax(scores, -1) @ v.repeat_interleave(2, 1), torch.logsumexp(scores, -1))[used]
    for mine, theirs in zip(got, torch.autograd.grad(want.sin().sum(), (q, k, v), allow_unused=True), strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences():
    q, k, v = (x.requires_grad_() for x in _draw(6, 7, 3, 2, heads=(2, 1), batch=1))

    def run(q, k, v):
        return flash_attention(q, k, v, causal=True, window=3, sinks=2, query_start=2, block=(4, 3))

    assert torch.autograd.gradcheck(run, (q, k, v))


@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"causal": True, "window": 13, "sinks": 3}])
def test_peers_of_the_benchmark_are_the_same_function(mask):
    q, k, v = (x.requires_grad_() for x in _draw(70, dim=16, value_dim=16))
    o, _ = flash_attention(q, k, v, **mask, block=(32, 16))
    want = sdpa(q, k, v, **mask)
    torch.testing.assert_close(o, want, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(*(torch.autograd.grad(x.sin().sum(), (q, k, v)) for x in (o, want)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    if not mask.get("sinks"):
        single = [x.detach().float() for x in (q, k, v)]
        torch.testing.assert_close(jax_attention(*single, **mask), o.detach().float(), rtol=1e-4, atol=1e-5)


def test_flex_attention_agrees():
    """An independent implementation with lse; it has no gradients on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b, h, i, j):
        return (j <= i + 8) & ((i + 8 - j < 12) | (j < 3))

    q, k, v = _draw(40, 50, 16, 16)
    want = flex_attention(
        q, k, v, block_mask=create_block_mask(seen, None, None, 40, 50, device="cpu"), enable_gqa=True, return_lse=True
    )
    got = flash_attention(q, k, v, causal=True, window=12, sinks=3, query_start=8, block=(16, 16))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_a_float32_lse(dtype):
    q, k, v = _draw(40, dtype=dtype)
    o, lse = flash_attention(q, k, v, causal=True)
    want, level = flash_attention(q.float(), k.float(), v.float(), causal=True)
    assert (o.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(o, want.to(dtype))
    torch.testing.assert_close(lse, level)
    half = {torch.float16: jnp.float16, torch.bfloat16: jnp.bfloat16}[dtype]
    o, lse = jax.jit(flash_attention)(*(jnp.asarray(x.float().numpy(), half) for x in (q, k, v)))
    assert (o.dtype, lse.dtype) == (half, jnp.float32)


@pytest.mark.parametrize("backend", ["jax", "pallas"])
def test_positions_may_be_traced(backend):
    q, k, v = (jnp.asarray(x.numpy(), jnp.float32) for x in _draw(12, 30, 16, 16, batch=1))

    @jax.jit
    def run(q, k, v, start):
        mask = {"causal": True, "window": 9, "sinks": 4, "query_start": start, "key_start": start - 20}
        return flash_attention(q, k, v, **mask, backend=backend)

    for start in (20, 23, 40):
        mask = {"causal": True, "window": 9, "sinks": 4, "query_start": start, "key_start": start - 20}
        arrays = (torch.from_numpy(np.array(x)) for x in (q, k, v))
        for mine, theirs in zip(run(q, k, v, start), flash_attention(*arrays, **mask), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_transformations_of_jax():
    """vmap over a batch; and a mesh, where positions come from the place of the device."""
    from jax.sharding import PartitionSpec as P

    q, k, v = (jnp.asarray(x.numpy(), jnp.float32) for x in _draw(20))

    def loss(q, k, v, start=0):
        o, lse = flash_attention(q, k, v, causal=True, query_start=start, block=(8, 16))
        return jnp.sin(o).sum() + jnp.sin(lse).sum()

    wanted = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    each = jax.vmap(jax.grad(lambda *x: loss(*(y[None] for y in x)), argnums=(0, 1, 2)))
    mesh = jax.make_mesh((1,), ("ring",), axis_types=(jax.sharding.AxisType.Auto,))

    def shard(*arrays):
        gradients = jax.grad(lambda *x: loss(*x, start=jax.lax.axis_index("ring") * 20), argnums=(0, 1, 2))
        return gradients(*arrays)

    rows = P(None, None, "ring")
    sharded = jax.shard_map(shard, mesh=mesh, in_specs=(rows, rows, rows), out_specs=(rows, rows, rows))
    for run in (each, sharded):
        for mine, theirs in zip(jax.jit(run)(q, k, v), wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


COMPILED = """
import torch
from kernels.flash_attention import flash_attention

q, k, v = (torch.randn(1, 2, 20, 4, requires_grad=True) for _ in range(3))

def run(q, k, v):
    return flash_attention(q, k, v, causal=True, window=9, sinks=2, block=(16, 8))

want = run(q, k, v)
got = torch.compile(run, fullgraph=True, backend="aot_eager")(q, k, v)
torch.testing.assert_close(got, want)
for mine, theirs in zip(*(torch.autograd.grad([x.sum() for x in o], (q, k, v)) for o in (got, want))):
    torch.testing.assert_close(mine, theirs)
"""


def test_torch_compiles_it_whole():
    """In a process of its own: the check of annotations, which is on here, cannot be traced."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_memory_grows_no_faster_than_the_sequence(backend):
    """Counted on the meta device, forward and backward, in units of what goes in and comes out."""
    for n in (1024, 4096):
        q, k, v = (torch.empty(1, 2, n, 16, device="meta", requires_grad=True) for _ in range(3))
        with Allocations(q, k, v) as counted:
            o, lse = flash_attention(q, k, v, causal=True, backend=backend)
            torch.autograd.grad((o, lse), (q, k, v), (torch.empty_like(o), torch.empty_like(lse)))
        tiles = 3 * 2 * 256 * 512 * 4 + 2 * 256 * 256 * 8
        assert counted.peak <= 12 * q.numel() * 4 + tiles


def _changed(**changes):
    q, k, v = _draw(10)
    return {"q": q, "k": k, "v": v, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": _draw(9)[1]}, r"\(2, 4, 10, 8\), \(2, 2, 9, 8\), \(2, 2, 10, 12\); wanted q \(batch, head, seq, dim\)"),
        ({"q": _draw(10, dim=7)[0]}, r"\(2, 4, 10, 7\), \(2, 2, 10, 8\)"),
        ({"q": _draw(10)[0][0]}, r"\(4, 10, 8\), \(2, 2, 10, 8\)"),
        ({"q": _draw(10, heads=(3, 2))[0]}, "3 heads of q for 2 of k and v; wanted a multiple"),
        ({"q": torch.zeros(2, 4, 10, 0), "k": torch.zeros(2, 2, 10, 0)}, "wanted dim and value_dim of at least 1"),
        ({"window": 4}, "window is 4, causal is False; wanted a window >= 1 with causal=True"),
        ({"window": 0, "causal": True}, "window is 0, causal is True"),
        ({"sinks": 2, "causal": True}, "sinks is 2, window is None"),
        ({"sinks": -1, "causal": True, "window": 3}, "sinks is -1, window is 3"),
        ({"query_start": -1}, "query_start is -1; wanted 0 .. 2147483637"),
        ({"key_start": 2**31}, "key_start is 2147483648; wanted 0 .. 2147483637"),
        ({"scale": float("nan")}, "scale is nan; wanted a finite number"),
        ({"block": (0, 16)}, r"block is \(0, 16\); wanted two positive integers"),
        ({"block": (16,)}, r"block is \(16,\); wanted two positive integers"),
    ],
)
def test_bad_input_is_one_sentence(changes, says):
    # The check of annotations in tests would speak before the function's own door does.
    door = inspect.unwrap(flash_attention)
    with pytest.raises(ValueError, match=says):
        door(**_changed(**changes))


def test_wrong_types_are_refused():
    door = inspect.unwrap(flash_attention)
    with pytest.raises(TypeError, match="dtypes float64, float64, int64; wanted one floating type"):
        door(**_changed(v=torch.ones(2, 2, 10, 12, dtype=torch.int64)))
    with pytest.raises(TypeError, match="dtypes float64, float32, float64; wanted one floating type"):
        door(**_changed(k=_draw(10)[1].float()))
    with pytest.raises(TypeError, match="k is a list; wanted torch tensors"):
        door(**_changed(k=[1.0]))
    with pytest.raises(TypeError, match=r"query_start is 1\.5; wanted an integer"):
        door(**_changed(query_start=1.5))
    with pytest.raises(TypeError, match=r"key_start is float32\[\]; wanted an integer"):
        door(**{name: jnp.asarray(x.numpy()) for name, x in _changed().items()}, key_start=jnp.float32(1))


def test_backends_say_what_they_do_not_offer():
    single = {name: x.float() for name, x in _changed().items()}
    arrays = {name: jnp.asarray(x.numpy()) for name, x in single.items()}
    with pytest.raises(ValueError, match=r"'triton' offers block \(16, 16\) or None, got \(64, 64\)"):
        flash_attention(**single, block=(64, 64), backend="triton")
    with pytest.raises(ValueError, match="'triton' computes in float32, got float64"):
        flash_attention(**_changed(), backend="triton")
    with pytest.raises(ValueError, match="'triton' takes heads up to 128 wide, got 144 and 12"):
        q, k, v = _draw(5, dim=144, dtype=torch.float32)
        flash_attention(q, k, v, backend="triton")
    with pytest.raises(ValueError, match=r"'pallas' offers blocks of powers of two from 16 on, got \(16, 24\)"):
        flash_attention(**arrays, block=(16, 24), backend="pallas")
    with jax.enable_x64(True), pytest.raises(ValueError, match="'pallas' computes in float32, got float64"):
        flash_attention(**{name: jnp.asarray(x.numpy()) for name, x in _changed().items()}, backend="pallas")


def test_frameworks_are_not_mixed_and_backends_not_invented():
    with pytest.raises(TypeError, match="one framework, got torch and jax"):
        q, k, v = _draw(10, dtype=torch.float32)
        flash_attention(q, jnp.asarray(k.numpy()), v)
    with pytest.raises(ValueError, match="no backend 'cuda'"):
        flash_attention(**_changed(), backend="cuda")
    q, k, v = (x.numpy() for x in _draw(5))
    assert all(isinstance(x, np.ndarray) for x in flash_attention(q, k, v)), "NumPy takes the reference"
