"""The judge itself: it sees a wrong value, a wrong gradient, an unwritten entry, and names the first that differs."""

import numpy as np
import pytest
import torch

from common import agreement
from common.agreement import assert_trees_agree, check, poisoned_memory, relative_error
from kernels.linear_attention import lightning_attention, torch_impl

OPERATION = lightning_attention.operation
CASE = next(case for case in OPERATION.cases() if not case.large and case.make(np.random.default_rng(0))["q"].shape[2] == 100)


def test_relative_error():
    assert relative_error([1.0, 2.0], [1.0, 2.0]) == 0
    assert relative_error([1.0, 2.1], [1.0, 2.0]) == pytest.approx(0.05)
    assert relative_error([[1.0]], [1.0]) == np.inf, "shapes differ"
    assert relative_error([np.nan, 1.0], [0.0, 1.0]) == np.inf
    assert relative_error([np.inf, 1.0], [np.inf, 1.0]) == 0
    assert relative_error([-np.inf, 1.0], [np.inf, 1.0]) == np.inf
    assert relative_error([0.0, 1e-3], [0.0, 0.0]) == 1e-3, "absolute where all is zero"
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0


@pytest.fixture
def planted(monkeypatch):
    """Replace the PyTorch backend by a faulty one."""

    def plant(fault):
        right = torch_impl.lightning_attention
        monkeypatch.setitem(OPERATION.loaded, "torch", lambda *args, **options: fault(right, *args, **options))

    return plant


def test_a_right_backend_is_right():
    assert max(check(OPERATION, CASE, "torch", "float64").values()) < 1e-12


def test_a_wrong_value_is_seen(planted):
    planted(lambda right, q, *rest, **options: right(q * (1 + 1e-6), *rest, **options))
    assert check(OPERATION, CASE, "torch", "float64")["output 0"] > 1e-7


def test_a_wrong_gradient_is_seen_though_the_value_is_right(planted):
    planted(lambda right, q, k, *rest, **options: right(q, k.detach(), *rest, **options))
    errors = check(OPERATION, CASE, "torch", "float64")
    assert errors["output 0"] < 1e-12 and errors["gradient of k"] > 0.5


def test_an_unwritten_entry_is_seen():
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_first_difference_is_named():
    want = {"a": np.ones(3), "b": np.ones(2)}
    assert assert_trees_agree(want, want, 0.0) == 0
    with pytest.raises(AssertionError, match=r"parameter 'b' differs first: relative error 0\.5"):
        assert_trees_agree({**want, "b": np.array([1, 1.5])}, want, 0.1)
    with pytest.raises(AssertionError, match="differ by name"):
        assert_trees_agree({"a": np.ones(3)}, want, 0.1)


def test_exact_operations_compare_bits():
    assert agreement._bits(np.float32([1]), np.float32([1])) == 0
    assert agreement._bits(np.float32([1]), np.float64([1])) == np.inf
    assert agreement._bits(np.float32([0.0]), np.float32([-0.0])) == np.inf
