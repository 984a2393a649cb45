"""8-bit Adam: what the generic tests of an operation do not see."""

import importlib.util
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.galore.kernel import BLOCK, adam8bit, cases
from papers.galore.kernel.tables import ZERO, first_guess, tables

pytestmark = pytest.mark.xdist_group("galore")


def state(count, block=BLOCK, seed=0):
    rng = np.random.default_rng(seed)
    blocks = -(-count // block)
    return {
        "gradient": torch.from_numpy(rng.standard_normal(count).astype(np.float32)),
        "mean": torch.from_numpy(rng.integers(0, 256, count).astype(np.uint8)),
        "mean_scale": torch.from_numpy(rng.uniform(0.1, 1, blocks).astype(np.float32)),
        "square": torch.from_numpy(rng.integers(0, 256, count).astype(np.uint8)),
        "square_scale": torch.from_numpy(rng.uniform(0.1, 1, blocks).astype(np.float32)),
    }


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 4096])
def test_whole_array_operations_do_what_the_compiled_pass_does(count, grid, monkeypatch):
    """The path of other devices and of tracing, bit for bit."""
    inputs = state(count)
    compiled = adam8bit(**inputs, step=3, grid=grid, backend="torch")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for mine, other in zip(adam8bit(**inputs, step=3, grid=grid, backend="torch"), compiled, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


def test_threads_do_not_change_the_result():
    inputs, before = state(300_000), torch.get_num_threads()
    one = adam8bit(**inputs, step=5)
    torch.set_num_threads(3)
    try:
        many = adam8bit(**inputs, step=5)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


@given(st.floats(-1, 1, width=32))
def test_the_first_guess_is_never_beyond_the_code(value):
    for guess, edges in zip(first_guess(), tables()[2:], strict=True):
        bits = np.float32(value).view(np.uint32)
        assert guess[bits >> np.uint32(17)] <= np.searchsorted(edges, np.float32(value))


def test_nothing_is_changed_in_place_and_zero_stays_zero():
    inputs = state(300)
    kept = {name: each.clone() for name, each in inputs.items()}
    adam8bit(**inputs, step=2)
    assert all(torch.equal(kept[name], inputs[name]) for name in kept)
    zeros = {name: torch.zeros_like(each) for name, each in inputs.items()}
    direction, mean, mean_scale, square, _ = adam8bit(**zeros, step=1)
    assert not direction.any() and not mean_scale.any()
    assert (mean == ZERO).all() and not square.any()
    assert tables()[0][ZERO] == 0


def test_long_runs_stay_near_adam_in_float32():
    """Codes of 8 bits follow Adam: the directions of 50 steps differ by a few per cent."""
    generator, count = torch.Generator().manual_seed(0), 4096
    codes = [torch.zeros(count, dtype=torch.uint8), torch.zeros(16), torch.zeros(count, dtype=torch.uint8), torch.zeros(16)]
    m, v = torch.zeros(count), torch.zeros(count)
    total, exact = torch.zeros(count), torch.zeros(count)
    drift = torch.randn(count, generator=generator)
    for step in range(1, 51):
        gradient = drift + 0.5 * torch.randn(count, generator=generator)
        direction, *codes = adam8bit(gradient, *codes, step=step)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        total += direction
        exact += m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    assert (total - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"mean": torch.zeros(300, dtype=torch.int32)}, TypeError, "mean is int32; wanted uint8"),
        ({"gradient": torch.zeros(300, dtype=torch.int64)}, TypeError, "gradient is int64; wanted float"),
        ({"square_scale": torch.zeros(1)}, ValueError, r"square_scale has shape \(1,\).*here \(2,\)"),
        ({"square": torch.zeros(299, dtype=torch.uint8)}, ValueError, r"square has shape \(299,\)"),
        ({"gradient": torch.zeros(10, 30)}, ValueError, "wanted a flat gradient"),
        ({"step": 0}, ValueError, "step is 0; wanted 1"),
        ({"beta1": 1.0}, ValueError, "betas are 1.0"),
        ({"block": 100}, ValueError, "block is 100; wanted one of 64"),
        ({"mean": np.zeros(300, np.uint8)}, TypeError, "all arrays must come from one framework"),
    ],
)
def test_bad_input_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        # The door itself, below the type checks of the test run.
        inspect.unwrap(adam8bit)(**{**state(300), "step": 1, **change})


def test_the_benchmarks_peers_do_the_same_work():
    case = next(each for each in cases.CASES["adam8bit"] if each.large)
    drawn = {**case.make(np.random.default_rng(0)), **state(2048), "step": 11, "grid": True}
    direction, *codes = adam8bit(**drawn)
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    weight, *theirs = cases.bitsandbytes_step(**drawn)
    torch.testing.assert_close(-weight, direction, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(mine, other) for mine, other in zip(codes, theirs, strict=True))
