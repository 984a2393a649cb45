"""What the agreement of the backends does not say: whole trajectories beside other optimisers, updates in place, bad input."""

import inspect
import itertools
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import example, given

from common import ROOT
from common.agreement import relative_error
from kernels.adam_chunk import adam_chunk
from kernels.adam_chunk.cases import fused, in_place

SIZE = 700


def _draw(size=SIZE, dtype=np.float32, seed=0):
    """A parameter, its first gradient, and a state that some steps have left."""
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(size), rng.standard_normal(size), 0.1 * rng.standard_normal(size), rng.random(size))
    return tuple(x.astype(dtype) for x in arrays)


def _gradient(parameter, noise):
    """Of a bent bowl, so that a wrong step changes all later gradients too."""
    return parameter + 0.3 * parameter**3 + 0.1 * noise


def _trajectory(backend, steps=20, dtype=np.float64, **options):
    parameter, _, _, _ = _draw(dtype=dtype)
    noises = np.random.default_rng(1).standard_normal((steps, SIZE)).astype(dtype)
    if backend == "torch":
        parameter, noises = torch.from_numpy(parameter), torch.from_numpy(noises)
    else:
        parameter, noises = jnp.asarray(parameter), jnp.asarray(noises)
    mean, square = parameter * 0, parameter * 0
    for step, noise in enumerate(noises, 1):
        found = adam_chunk(parameter, _gradient(parameter, noise), mean, square, step=step, backend=backend, **options)
        parameter, mean, square = found
    return np.asarray(parameter)


def _torch_trajectory(decoupled, steps=20, dtype=np.float64, **options):
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    parameter = torch.nn.Parameter(torch.from_numpy(_draw(dtype=dtype)[0]))
    optimizer = kind([parameter], **options)
    for noise in np.random.default_rng(1).standard_normal((steps, SIZE)).astype(dtype):
        parameter.grad = _gradient(parameter.detach(), torch.from_numpy(noise))
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize("kind", ["foreach", "fused"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_twenty_steps_are_those_of_torch(kind, decoupled):
    theirs = {"lr": 0.03, "betas": (0.85, 0.97), "eps": 1e-6, "weight_decay": 0.2, kind: kind == "fused"}
    ours = {"learning_rate": 0.03, "beta1": 0.85, "beta2": 0.97, "epsilon": 1e-6, "weight_decay": 0.2, "decoupled": decoupled}
    assert relative_error(_trajectory("torch", **ours), _torch_trajectory(decoupled, **theirs)) < 1e-12
    mine = _trajectory("torch", dtype=np.float32, **ours)
    assert relative_error(mine, _torch_trajectory(decoupled, dtype=np.float32, **theirs)) < 1e-6


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_twenty_steps_are_those_of_optax(decay):
    with jax.enable_x64(True):
        mine = _trajectory("jax", learning_rate=0.03, weight_decay=decay)
        transform = optax.adamw(0.03, weight_decay=decay) if decay else optax.adam(0.03)
        parameter = jnp.asarray(_draw(dtype=np.float64)[0])
        state = transform.init(parameter)
        for noise in np.random.default_rng(1).standard_normal((20, SIZE)):
            updates, state = transform.update(_gradient(parameter, noise), state, parameter)
            parameter = optax.apply_updates(parameter, updates)
        assert relative_error(mine, parameter) < 1e-12


@given(st.lists(st.integers(0, SIZE), max_size=4), st.booleans())
@example([0, SIZE], True)
def test_cutting_does_not_matter_in_any_bit(cuts, decoupled):
    arrays = [torch.from_numpy(x) for x in _draw()]
    options = {"step": 3, "learning_rate": 0.1, "weight_decay": 0.1, "decoupled": decoupled}
    whole = adam_chunk(*arrays, **options)
    ends = [0, *sorted(cuts), SIZE]
    parts = [adam_chunk(*(x[a:b] for x in arrays), **options) for a, b in itertools.pairwise(ends)]
    for i, want in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), want)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_in_place_is_the_pure_form_bit_for_bit(backend, kind):
    parameter, gradient, mean, square = (torch.from_numpy(x) for x in _draw())
    if kind == torch.bfloat16 and backend == "triton":
        pytest.skip("the interpreter computes bfloat16 silently wrong; compilation covers it")
    gradient, options = gradient.to(kind), {"step": 2, "learning_rate": 0.1, "weight_decay": 0.1, "backend": backend}
    kept = [x.clone() for x in (parameter, gradient, mean, square)]
    want = adam_chunk(parameter, gradient, mean, square, **options)
    assert all(torch.equal(x, y) for x, y in zip(kept, (parameter, gradient, mean, square), strict=True)), "pure"
    fresh = tuple(torch.full_like(x, torch.nan) for x in want)
    assert all(x is y for x, y in zip(adam_chunk(*kept, **options, out=fresh), fresh, strict=True))
    partly = parameter.clone(), torch.empty_like(mean), torch.empty_like(square)
    adam_chunk(partly[0], gradient, mean, square, **options, out=partly)
    adam_chunk(parameter, gradient, mean, square, **options, out=(parameter, mean, square))
    for each in (fresh, partly, (parameter, mean, square)):
        assert all(torch.equal(x, y) for x, y in zip(each, want, strict=True))


def test_sixteen_bit_gradients_are_read_exactly():
    """All 65536 of each kind, infinities and NaN included: with beta1 = 0 the mean is the gradient."""
    bits, zeros = torch.arange(65536, dtype=torch.int32).to(torch.uint16), torch.zeros(65536)
    for kind in (torch.float16, torch.bfloat16):
        gradient = bits.view(kind)
        mean = adam_chunk(zeros, gradient, zeros, zeros, step=1, learning_rate=0.0, beta1=0.0)[1]
        assert torch.equal(mean.nan_to_num(nan=7.0), gradient.float().nan_to_num(nan=7.0))
        assert torch.equal(mean.isnan(), gradient.isnan())


@pytest.mark.parametrize("backend", ["triton", "jax", "pallas"])
def test_sixteen_bit_gradients_elsewhere(backend):
    arrays = _draw()
    gradient = torch.from_numpy(arrays[1]).half()
    options = {"step": 2, "learning_rate": 0.1}
    parameter, _, mean, square = (torch.from_numpy(x) for x in arrays)
    want = adam_chunk(parameter, gradient, mean, square, **options)
    if backend == "triton":
        got = adam_chunk(parameter, gradient, mean, square, **options, backend=backend)
    else:
        state = [jnp.asarray(x.numpy()) for x in (parameter, mean, square)]
        got = adam_chunk(state[0], jnp.asarray(gradient.numpy()), *state[1:], **options, backend=backend)
    for mine, theirs in zip(got, want, strict=True):
        assert str(mine.dtype).endswith("float32")
        assert relative_error(np.asarray(mine), theirs.numpy()) < 1e-6


def test_autograd_hears_of_an_update_in_place():
    parameter, gradient, mean, square = (torch.from_numpy(x) for x in _draw())
    weight = torch.nn.Parameter(parameter)
    loss = (weight**2).sum()
    adam_chunk(weight, gradient, mean, square, step=1, learning_rate=0.1, out=(weight, mean, square))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", ["jax", "pallas"])
def test_step_and_rate_may_be_traced(backend):
    """Also late, where 1 - beta^t is one, and early, where it has few digits left in float32."""
    arrays = [jnp.asarray(x) for x in _draw()]
    run = jax.jit(lambda step, rate: adam_chunk(*arrays, step=step, learning_rate=rate, weight_decay=0.1, backend=backend))
    for step in (1, 2, 1000, 10**6):
        want = adam_chunk(*(x.astype(np.float64) for x in _draw()), step=step, learning_rate=0.01, weight_decay=0.1)
        for mine, theirs in zip(run(step, 0.01), want, strict=True):
            assert relative_error(mine, theirs) < 1e-6


def test_peers_of_the_benchmark_are_the_same_function():
    options = {"step": 7, "learning_rate": 0.01, "weight_decay": 0.1}
    want = adam_chunk(*(torch.from_numpy(x) for x in _draw()), **options)
    for peer in (fused, in_place):
        for mine, theirs in zip(peer(*(torch.from_numpy(x) for x in _draw()), **options), want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_several_threads_and_strides_change_nothing():
    rng, size = np.random.default_rng(0), 3 * (1 << 16) + 5
    arrays = [torch.from_numpy(rng.random((size, 2), np.float32)) for _ in range(4)]
    options, threads = {"step": 2, "learning_rate": 0.1}, torch.get_num_threads()
    want = adam_chunk(*(x[:, 0].contiguous() for x in arrays), **options)
    try:
        torch.set_num_threads(3)
        got = adam_chunk(*(x[:, 0] for x in arrays), **options)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_other_devices_and_compilers_take_whole_arrays():
    """The path beside the compiled loop: counted on the meta device, and traced whole in a process of its own."""
    arrays = [torch.empty(10, device="meta") for _ in range(4)]
    assert all(x.is_meta for x in adam_chunk(*arrays, step=1, learning_rate=0.1))
    code = """
import torch
from kernels.adam_chunk import adam_chunk
arrays = [torch.rand(100) for _ in range(4)]
for options in ({}, {"weight_decay": 0.1, "decoupled": False}):
    run = lambda *x: adam_chunk(*x, step=3, learning_rate=0.1, **options)
    want = run(*arrays)
    got = torch.compile(run, fullgraph=True, backend="eager")(*arrays)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
into = lambda *x: adam_chunk(*x, step=3, learning_rate=0.1, out=(x[0], x[2], x[3]))
first, second = ([x.clone() for x in arrays] for _ in range(2))
into(*first)
torch.compile(into, fullgraph=True, backend="eager")(*second)
torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def _changed(**changes):
    names = ("parameter", "gradient", "mean", "square")
    arrays = dict(zip(names, (torch.from_numpy(x) for x in _draw(10)), strict=True))
    return {**arrays, "step": 1, "learning_rate": 0.1, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gradient": torch.zeros(9)}, r"have shapes \(10,\), \(9,\), \(10,\), \(10,\); wanted one flat length"),
        (dict.fromkeys(("parameter", "gradient", "mean", "square"), torch.zeros(2, 5)), r"\(2, 5\); wanted one flat length"),
        ({"step": 0}, "step is 0; wanted 1 for the first step"),
        ({"beta1": 1.0}, r"beta1 is 1.0; wanted a number in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2 is -0.1; wanted a number in \[0, 1\)"),
        ({"epsilon": float("nan")}, r"epsilon is nan; wanted a number in \[0, infinity\)"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"out": (torch.zeros(10), torch.zeros(10))}, "out wants three contiguous tensors"),
        ({"out": (torch.zeros(10), torch.zeros(10), torch.zeros(9))}, "out wants three contiguous tensors"),
        ({"out": (torch.zeros(10), torch.zeros(10), torch.zeros(10, 2)[:, 0])}, "out wants three contiguous tensors"),
        ({"out": (torch.zeros(10), torch.zeros(10), torch.zeros(10).double())}, "out wants three contiguous tensors"),
    ],
)
def test_bad_input_is_one_sentence(changes, says):
    # The check of annotations in tests would speak before the function's own door does.
    with pytest.raises(ValueError, match=says):
        inspect.unwrap(adam_chunk)(**_changed(**changes))


def test_out_may_not_lie_on_another_array():
    given = _changed()
    other = torch.zeros(10)
    for out in (
        (given["mean"], given["parameter"], other),
        (given["gradient"], torch.zeros(10), other),
        (other, other, torch.zeros(10)),
    ):
        with pytest.raises(ValueError, match="lies on another input or output"):
            adam_chunk(**given, out=out)


def test_wrong_types_are_refused():
    door = inspect.unwrap(adam_chunk)
    with pytest.raises(TypeError, match=r"gradient float64, .* a floating gradient that is not wider"):
        door(**_changed(gradient=torch.zeros(10).double()))
    with pytest.raises(TypeError, match="parameter float16"):
        door(**{name: x.half() if isinstance(x, torch.Tensor) else x for name, x in _changed().items()})
    with pytest.raises(TypeError, match="mean float64"):
        door(**_changed(mean=torch.zeros(10).double()))
    with pytest.raises(TypeError, match="gradient is a list"):
        door(**_changed(gradient=[1.0]))
    with pytest.raises(TypeError, match=r"step is 1\.5; wanted an integer"):
        door(**_changed(step=1.5))
    arrays = {name: jnp.asarray(x.numpy()) if isinstance(x, torch.Tensor) else x for name, x in _changed().items()}
    with pytest.raises(TypeError, match=r"step is float32\[\]; wanted an integer"):
        door(**{**arrays, "step": jnp.float32(1)})
    with pytest.raises(TypeError, match="out is for the backends torch and triton"):
        door(**arrays, out=(arrays["parameter"], arrays["mean"], arrays["square"]))


def test_backends_say_what_they_do_not_offer():
    double = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in _changed().items()}
    with pytest.raises(ValueError, match="'triton' computes in float32, got float64"):
        adam_chunk(**double, backend="triton")
    with jax.enable_x64(True), pytest.raises(ValueError, match="'pallas' computes in float32, got float64"):
        arrays = {name: jnp.asarray(x.numpy()) if isinstance(x, torch.Tensor) else x for name, x in double.items()}
        adam_chunk(**arrays, backend="pallas")
    assert isinstance(adam_chunk(*_draw(5), step=1, learning_rate=0.1)[0], np.ndarray), "NumPy takes the reference"
