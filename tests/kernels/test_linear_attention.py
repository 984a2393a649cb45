"""What the agreement of the backends does not say: properties of the operation, an independent peer, bad input."""

import inspect
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given

from common import ROOT
from common.allocations import Allocations
from kernels.linear_attention import alibi_slopes, lightning_attention, lightning_step
from kernels.linear_attention.cases import minimax

SLOPE = torch.tensor([1e-4, 0.5, 5.0], dtype=torch.float64)


def _draw(n, d=8, e=12, heads=3, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, heads, n, d), (2, heads, n, d), (2, heads, n, e)]
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes]


def _recurrence(q, k, v, slope, state):
    outputs = []
    for t in range(q.shape[2]):
        state = torch.exp(-slope)[:, None, None] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 2), state


@pytest.mark.parametrize("variant", ["loop", "parallel", "left"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
def test_state_and_output_are_those_of_the_recurrence(variant, n):
    q, k, v = _draw(n)
    first = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    want = _recurrence(q, k, v, SLOPE, first)
    got = lightning_attention(q, k, v, SLOPE, initial_state=first, return_state=True, block=16, variant=variant)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@given(st.integers(0, 70), st.integers(0, 70), st.sampled_from(["loop", "parallel"]))
def test_a_sequence_may_be_cut_anywhere(before, after, variant):
    q, k, v = _draw(before + after)
    o, state = lightning_attention(q, k, v, SLOPE, return_state=True, block=16, variant=variant)
    o1, middle = lightning_attention(q[:, :, :before], k[:, :, :before], v[:, :, :before], SLOPE, return_state=True, block=16)
    rest = (x[:, :, before:] for x in (q, k, v))
    o2, last = lightning_attention(*rest, SLOPE, initial_state=middle, return_state=True, block=32)
    torch.testing.assert_close(torch.cat([o1, o2], 2), o, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(last, state, rtol=1e-11, atol=1e-11)


def test_decoding_step_by_step_is_the_whole():
    q, k, v = _draw(20)
    want, last = lightning_attention(q, k, v, SLOPE, return_state=True)
    state = torch.zeros(2, 3, 8, 12, dtype=torch.float64)
    for t in range(20):
        o, state = lightning_step(q[:, :, t], k[:, :, t], v[:, :, t], state, SLOPE)
        torch.testing.assert_close(o, want[:, :, t], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variant", ["loop", "parallel", "left"])
def test_gradients_by_finite_differences(variant):
    q, k, v = (x.requires_grad_() for x in _draw(19, d=3, e=2, heads=2))
    first = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, first):
        return lightning_attention(q, k, v, SLOPE[1:], initial_state=first, return_state=True, block=16, variant=variant)

    assert torch.autograd.gradcheck(run, (q, k, v, first))


@pytest.mark.parametrize("variant", ["loop", "parallel", "left"])
def test_steep_decay_over_long_blocks_stays_finite(variant):
    q, k, v = _draw(600, dtype=torch.float32)
    o = lightning_attention(q, k, v, torch.tensor([20.0, 0.5, 1e-6]), block=256, variant=variant)
    assert torch.isfinite(o).all()


def test_minimax_of_transformers_agrees():
    """An independent implementation: the block loop of MiniMax with its projections and gate made transparent."""
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    heads, dim, n = 4, 16, 70
    config = MiniMaxConfig(
        hidden_size=heads * dim, num_attention_heads=heads, head_dim=dim, num_hidden_layers=2, block_size=16, hidden_act="relu"
    )
    layer = MiniMaxLightningAttention(config, layer_idx=0).double()
    x = torch.rand(1, n, heads * dim, dtype=torch.float64)
    qkv = torch.relu(layer.qkv_proj(x)).reshape(1, n, heads, 3 * dim).transpose(1, 2)
    q, k, v = qkv.split(dim, -1)
    slope = layer.slope_rate.flatten().double()
    o = lightning_attention(q, k, v, slope, block=32)
    o = layer.norm(o.transpose(1, 2).reshape(1, n, heads * dim))
    want = layer.out_proj(torch.sigmoid(layer.output_gate(x)) * o)
    positions = (torch.ones(1, n, dim), torch.zeros(1, n, dim))
    got = layer(x, position_embeddings=positions, attention_mask=None)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # its decay is computed in float32
    np.testing.assert_allclose(slope.detach().numpy(), alibi_slopes(heads, 0, 2), rtol=1e-6)


def test_slopes():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1.0, 9))
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    np.testing.assert_allclose(alibi_slopes(8, 23, 24), alibi_slopes(8) * 1e-5)
    with pytest.raises(ValueError, match="layer is 2, layers is 2"):
        alibi_slopes(4, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_a_float32_state(dtype):
    o, state = lightning_attention(*_draw(40, dtype=dtype), SLOPE.float(), return_state=True)
    assert o.dtype == dtype and state.dtype == torch.float32
    token = [x[:, :, 0] for x in _draw(1, dtype=dtype)]
    o, state = lightning_step(*token, state, SLOPE.to(dtype))
    assert o.dtype == dtype and state.dtype == torch.float32
    half = {torch.float16: jnp.float16, torch.bfloat16: jnp.bfloat16}[dtype]
    q, k, v = (jnp.asarray(x.float().numpy(), half) for x in _draw(40, dtype=dtype))
    o, state = lightning_attention(q, k, v, jnp.asarray(SLOPE.numpy()), return_state=True)
    assert o.dtype == half and state.dtype == jnp.float32


def test_transformations_of_jax():
    q, k, v = (jnp.asarray(x.numpy(), jnp.float32) for x in _draw(33))
    slope = jnp.asarray(SLOPE.numpy(), jnp.float32)
    want = lightning_attention(q, k, v, slope)
    np.testing.assert_allclose(jax.jit(lightning_attention)(q, k, v, slope), want, rtol=1e-5, atol=1e-5)
    many = jax.vmap(lambda q, k, v: lightning_attention(q[None], k[None], v[None], slope)[0])(q, k, v)
    np.testing.assert_allclose(many, want, rtol=1e-5, atol=1e-5)

    def loss(q, k, v, slope):
        return (lightning_attention(q[None], k[None], v[None], slope)[0] ** 2).sum()

    each = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2, 3)), in_axes=(0, 0, 0, None)))(q, k, v, slope)
    q, k, v = (torch.from_numpy(np.array(x)).requires_grad_() for x in (q, k, v))
    (lightning_attention(q, k, v, SLOPE.float()) ** 2).sum().backward()
    for mine, theirs in zip(each, (q.grad, k.grad, v.grad), strict=False):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert not each[3].any(), "the slope is a constant"


COMPILED = """
import torch
from kernels.linear_attention import lightning_attention

q, k, v = (torch.randn(1, 2, 20, 4, requires_grad=True) for _ in range(3))
slope = torch.tensor([0.1, 2.0], requires_grad=True)

def run(q, k, v, slope):
    return lightning_attention(q, k, v, slope, block=16)

want = run(q, k, v, slope)
got = torch.compile(run, fullgraph=True, backend="aot_eager")(q, k, v, slope)
torch.testing.assert_close(got, want)
for mine, theirs in zip(*(torch.autograd.grad(o.sum(), (q, k, v)) for o in (got, want))):
    torch.testing.assert_close(mine, theirs)
"""


def test_torch_compiles_it_whole():
    """In a process of its own: the check of annotations, which is on here, cannot be traced."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_slope_is_a_constant():
    q, k, v = (x.requires_grad_() for x in _draw(5))
    slope = SLOPE.clone().requires_grad_()
    assert torch.autograd.grad(lightning_attention(q, k, v, slope).sum(), (q, slope), allow_unused=True)[1] is None


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("variant", ["loop", "parallel", "left"])
def test_memory_of_any_size_is_counted_on_the_meta_device(backend, variant):
    q, k, v = (torch.empty(1, 2, 200, 16, device="meta", requires_grad=True) for _ in range(3))
    state = torch.empty(1, 2, 16, 16, device="meta", requires_grad=True)
    slope = torch.empty(2, device="meta")
    o, last = lightning_attention(q, k, v, slope, initial_state=state, return_state=True, variant=variant, backend=backend)
    gradients = torch.autograd.grad((o, last), (q, k, v, state), (torch.empty_like(o), torch.empty_like(last)))
    assert [x.shape for x in (o, last, *gradients)] == [v.shape, state.shape, q.shape, k.shape, v.shape, state.shape]


@pytest.mark.parametrize("variant", ["loop", "parallel", "left"])
@pytest.mark.parametrize("used", ["output", "state"])
def test_triton_leaves_out_states_that_nobody_wants(variant, used):
    """A first state of None is one of zeros; an output or state that no loss reaches has no gradient."""
    q, k, v = (x.requires_grad_() for x in _draw(20, heads=1, dtype=torch.float32))
    found = []
    for backend in ("triton", "torch"):
        arguments = (q, k, v, SLOPE[1:2].float())
        o = lightning_attention(*arguments, variant=variant, backend=backend, return_state=used == "state")
        o = o[1] if used == "state" else o
        found.append([o.detach(), *torch.autograd.grad(o.sin().sum(), (q, k, v), allow_unused=True)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-5, atol=1e-5)


def test_memory_grows_no_faster_than_the_sequence():
    """Neither pass of the loop keeps a state for each block."""
    peaks = []
    for n in (1024, 2048):
        q, k, v = (torch.empty(1, 2, n, 16, device="meta", requires_grad=True) for _ in range(3))
        with Allocations(q, k, v) as counted:
            lightning_attention(q, k, v, torch.empty(2, device="meta"), block=16).sum().backward()
        peaks.append(counted.peak)
    assert peaks[1] <= 2 * peaks[0]


def test_peer_of_the_benchmark_is_the_same_function():
    q, k, v = _draw(300, d=16, e=16, heads=4, dtype=torch.float32)
    slope = torch.from_numpy(alibi_slopes(4)).float()
    torch.testing.assert_close(minimax(q, k, v, slope), lightning_attention(q, k, v, slope), rtol=1e-4, atol=1e-4)


def _changed(**changes):
    q, k, v = _draw(10)
    return {"q": q, "k": k, "v": v, "slope": SLOPE, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": _draw(9)[1]}, r"\(2, 3, 10, 8\), \(2, 3, 9, 8\)"),
        ({"v": _draw(10, heads=2)[2]}, r"\(2, 2, 10, 12\)"),
        ({"slope": SLOPE[:2]}, r"slope has shape \(2,\); wanted one for each head"),
        ({"slope": -SLOPE}, "slope of head 0 is -0.0001"),
        ({"slope": torch.tensor([1.0, 0.0, 1.0])}, "slope of head 1 is 0.0"),
        ({"block": 48}, "block is 48; wanted one of 16, 32, 64"),
        ({"variant": "right"}, "variant is 'right'; wanted one of loop, parallel, left"),
        ({"initial_state": torch.zeros(2, 3, 12, 8, dtype=torch.float64)}, r"initial_state has shape \(2, 3, 12, 8\)"),
    ],
)
def test_bad_input_is_one_sentence(changes, says):
    # The check of annotations in tests would speak before the function's own door does.
    door = inspect.unwrap(lightning_attention)
    with pytest.raises(ValueError, match=says):
        door(**_changed(**changes))


def test_integers_and_mixed_types_are_refused():
    door = inspect.unwrap(lightning_attention)
    with pytest.raises(TypeError, match="v int64, slope float64; wanted floating point"):
        door(**_changed(v=torch.ones(2, 3, 10, 12, dtype=torch.int64)))
    with pytest.raises(TypeError, match="float64, float32, float64; wanted the same"):
        door(**_changed(k=_draw(10)[1].float()))
    with pytest.raises(TypeError, match="k is a list"):
        door(**_changed(k=[1.0]))
    q, k, v = (x[:, :, 0] for x in _draw(1))
    with pytest.raises(ValueError, match=r"state has shape \(2, 3, 8, 8\); wanted \(batch, head, d, e\) = \(2, 3, 8, 12\)"):
        inspect.unwrap(lightning_step)(q, k, v, torch.zeros(2, 3, 8, 8), SLOPE)


def test_backends_say_what_they_do_not_offer():
    single = {name: x.float() for name, x in _changed().items()}
    with pytest.raises(ValueError, match="'triton' offers blocks of 16 or 32, got 64"):
        lightning_attention(**single, block=64, backend="triton")
    with pytest.raises(ValueError, match="'triton' computes in float32, got float64"):
        lightning_attention(**_changed(), backend="triton")
    with pytest.raises(ValueError, match="'pallas' offers variant loop, got left"):
        arrays = {name: jnp.asarray(x.numpy()) for name, x in single.items()}
        lightning_attention(**arrays, variant="left", backend="pallas")


def test_frameworks_are_not_mixed_and_backends_not_invented():
    with pytest.raises(TypeError, match="one framework, got torch and jax"):
        lightning_attention(**_changed(slope=jnp.ones(3)))
    with pytest.raises(ValueError, match="no backend 'cuda'"):
        lightning_attention(**_changed(), backend="cuda")
    with pytest.raises(TypeError, match="backend 'jax' takes jax arrays, got torch arrays"):
        lightning_attention(**_changed(), backend="jax")
    q, k, v = (x.numpy() for x in _draw(5))
    assert isinstance(lightning_attention(q, k, v, SLOPE.numpy()), np.ndarray), "NumPy takes the reference"
