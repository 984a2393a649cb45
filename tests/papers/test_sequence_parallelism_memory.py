"""What is held: the memory model against brute force and built layers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.sequence_parallelism import held, memory_model
from papers.sequence_parallelism.encoder import Shape
from papers.sequence_parallelism.memory_model import BERT_BASE, device, largest, sparse_device
from papers.sequence_parallelism.model_jax import mesh

pytestmark = pytest.mark.xdist_group("sequence_parallelism")


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 10**6))
def test_the_largest_is_what_trying_finds(devices, batch, limit) -> None:
    numbers = partial(device, "sequence", devices, batch, shape=Shape(8, 1, 2, 4))
    got = int(largest(numbers, limit, np.zeros((), np.int64), np, top=200))
    fits = [n for n in range(201) if numbers(n) <= limit]
    assert got == (max(fits) if fits else 0)


def test_the_search_is_the_same_in_both_frameworks() -> None:
    sizes = np.array([1, 2, 4, 8, 16, 32])
    numbers = lambda n, devices: sparse_device(devices, 4, n)  # noqa: E731
    want = [int(largest(partial(numbers, devices=int(size)), 4e9, np.zeros((), np.int64), np)) for size in sizes]
    devices = torch.from_numpy(sizes)
    got = largest(lambda n: numbers(n.double(), devices), 4e9, torch.zeros(6, dtype=torch.int64), torch)
    assert got.tolist() == want
    with jax.enable_x64(True):
        found = largest(lambda n: numbers(n, jnp.asarray(sizes)), 4e9, jnp.zeros(6, jnp.int64), jnp)
    assert found.tolist() == want and want == sorted(want)


def test_one_device_is_the_same_by_both() -> None:
    """On one device both kinds of parallelism are none."""
    assert device("tensor", 1, 3, 64) == pytest.approx(device("sequence", 1, 3, 64))
    assert memory_model.mlp("tensor", 1, 10, 8) == memory_model.mlp("sequence", 1, 10, 8)
    assert device("sequence", 8, 3, 64, whole=True) == device("sequence", 1, 3, 64)


@given(st.sampled_from([2, 4, 8, 64]), st.integers(1, 512))
def test_break_even_of_the_formulas(devices, width) -> None:
    for tokens, better in ((31 * width, False), (33 * width, True)):
        gap = memory_model.mlp("tensor", devices, tokens, width) - memory_model.mlp("sequence", devices, tokens, width)
        assert (gap > 0) == better
    for length, better in ((15 * width, False), (17 * width, True)):
        gap = memory_model.attention("tensor", devices, 1, length, width, 4) - memory_model.attention(
            "sequence", devices, 1, length, width, 4
        )
        assert (gap > 0) == better


def test_kept_counts_a_memory_once_and_no_weights() -> None:
    linear = torch.nn.Linear(4, 4)
    x = torch.randn(3, 4).requires_grad_()
    assert held.kept(lambda: linear(x)) == 12 + 16
    assert held.kept(lambda: linear(x), linear) == 12
    assert held.kept(lambda: (linear(x), linear(x.view(3, 2, 2).view(3, 4))), linear) == 12


def test_a_mesh_larger_than_the_devices_is_refused() -> None:
    too_many = len(jax.devices()) + 1
    with pytest.raises(ValueError, match=f"sequence={too_many} has {too_many} devices, and JAX sees {too_many - 1}"):
        mesh(sequence=too_many)


def test_bert_base_has_the_weights_that_are_known() -> None:
    """85 million in the blocks, from the tables' 12 H^2 for each."""
    assert BERT_BASE.depth * 12 * BERT_BASE.width**2 == 84_934_656
    limit = device("sequence", 1, 0, 512)
    assert limit == 4 * (84_934_656 + (BERT_BASE.vocabulary + 512) * 768)
