"""Dispatch: the backend is found from the arrays, imported when first used, and survives every transformation."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common import ROOT
from common.ops import Operation, discover, framework, readable
from kernels.linear_attention import lightning_attention


def _arrays(make):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, 20, 4))
    return [make(each) for each in (q, k, v, np.array([0.1, 0.5]))]


def test_framework_of_a_value():
    assert framework(torch.zeros(1)) == framework(torch.nn.Parameter(torch.zeros(1))) == "torch"
    assert framework(jnp.zeros(1)) == "jax" and framework(np.zeros(1)) == "numpy"
    assert all(framework(each) is None for each in (1, 2.0, None, "a", [1], np.float64(3), torch.float32, jnp.float32))
    seen = []
    jax.jit(lambda x: seen.append(framework(x)) or x)(jnp.zeros(1))
    assert seen == ["jax"], "a tracer is a jax array"


def test_each_framework_gets_its_own_arrays_back():
    want = lightning_attention(*_arrays(np.asarray))
    assert isinstance(want, np.ndarray)
    got = lightning_attention(*_arrays(torch.from_numpy))
    assert isinstance(got, torch.Tensor)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-10)
    got = lightning_attention(*_arrays(jnp.asarray))
    assert isinstance(got, jax.Array)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_torch_compiles_the_whole_call():
    """In a process of its own: the type-checking hook of the tests cannot be compiled through."""
    code = (
        "import torch; from kernels.linear_attention import lightning_attention\n"
        "q, slope = torch.randn(1, 2, 70, 4), torch.tensor([0.1, 0.5])\n"
        "want = lightning_attention(q, q, q, slope)\n"
        "got = torch.compile(lightning_attention, fullgraph=True, backend='eager')(q, q, q, slope)\n"
        "torch.testing.assert_close(got, want)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("arrays", "backend", "error", "says"),
    [
        (_arrays(np.asarray), "torch", TypeError, "backend 'torch' takes torch arrays, got numpy arrays"),
        (_arrays(torch.from_numpy), "pallas", TypeError, "backend 'pallas' takes jax arrays, got torch arrays"),
        (_arrays(jnp.asarray), "reference", TypeError, "takes numpy or torch arrays, got jax arrays"),
        (_arrays(torch.from_numpy), "cuda", ValueError, "no backend 'cuda'; it has reference, torch"),
    ],
)
def test_forced_backend_takes_its_own_arrays(arrays, backend, error, says):
    with pytest.raises(error, match=says):
        lightning_attention(*arrays, backend=backend)


def test_missing_package_is_one_sentence():
    code = (
        "import sys, numpy as np, torch; sys.modules['triton'] = None\n"
        "from kernels.linear_attention import lightning_attention\n"
        "q = torch.zeros(1, 1, 4, 4)\n"
        "lightning_attention(q, q, q, torch.ones(1), backend='triton')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "backend 'triton' needs the package 'triton', which is not installed here" in done.stderr


def test_triton_on_a_cpu_says_what_to_do():
    code = (
        "import os; os.environ.pop('TRITON_INTERPRET', None)\n"
        "import torch; from kernels.linear_attention import lightning_attention\n"
        "q = torch.zeros(1, 1, 4, 4)\n"
        "lightning_attention(q, q, q, torch.ones(1), backend='triton')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "needs tensors on a GPU, got the cpu; use backend='torch', or set TRITON_INTERPRET=1" in done.stderr


def test_no_arrays_at_all():
    with pytest.raises(TypeError, match="expected torch tensors, jax arrays or NumPy arrays, got int"):
        Operation("nothing", "kernels.linear_attention", ("torch",))(1)


def test_discovery_finds_every_room():
    found = [(operation.room, operation.name) for operation in discover()]
    assert found == sorted(found) and ("kernels.linear_attention", "lightning_attention") in found


def test_what_is_traced_is_not_readable():
    constant, seen = jnp.ones(2), []
    jax.jit(lambda x: seen.append((readable(x), readable(constant))) or x)(constant)
    assert seen == [(False, False)]
    assert readable(constant)
    assert readable(np.ones(2))
    assert readable(torch.ones(2))
