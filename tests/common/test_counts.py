"""Operator counts against counters that walk the real models: torch's, and the products of JAX's own graph."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.architecture import Transformer
from common.hardware import counts
from common.models import transformer_jax, transformer_torch

SMALL = {"width": 24, "depth": 3, "head_dim": 8, "hidden": 40, "context": 32, "vocabulary": 50}
KINDS = {
    "multi-head": Transformer(**SMALL, heads=4, kv_heads=4),
    "grouped, untied": Transformer(**SMALL, heads=4, kv_heads=2, tied=False),
    "one key head, gelu": Transformer(**SMALL, heads=4, kv_heads=1, feed_forward="gelu", norm="layer", positions="learned"),
    "experts": Transformer(**SMALL, heads=4, kv_heads=2, experts=4, active=2),
}
YI = Transformer(vocabulary=64000, width=7168, depth=60, heads=56, kv_heads=8, head_dim=128, hidden=20480, context=16, tied=False)


def in_torch(architecture: Transformer, batch: int, tokens: int) -> int:
    # The counter does not know the fused kernel of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer_torch.TransformerLM(architecture)(torch.zeros(batch, tokens, dtype=torch.long))
    return counter.get_total_flops()


def products(jaxpr: Any) -> int:
    """FLOP of every dot_general, inner graphs included."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            found += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contract)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                found += products(value.jaxpr)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 7)])
def test_operations_equal_torchs_counter(kind: str, batch: int, tokens: int) -> None:
    want = counts.total(counts.operators(KINDS[kind], batch=batch, tokens=tokens, causal=False)).operations
    assert in_torch(KINDS[kind], batch, tokens) == want


@pytest.mark.parametrize("kind", list(KINDS)[:3])
def test_operations_equal_the_products_of_jaxs_graph(kind: str) -> None:
    model = transformer_jax.TransformerLM(KINDS[kind])
    graph = jax.make_jaxpr(lambda tokens: model(tokens))(jnp.zeros((2, 7), int))
    assert products(graph.jaxpr) == counts.total(counts.operators(KINDS[kind], batch=2, tokens=7, causal=False)).operations


def test_operations_agree_with_xlas_cost_analysis() -> None:
    architecture = Transformer(width=128, depth=2, heads=4, kv_heads=2, head_dim=32, hidden=512, context=128)
    model = transformer_jax.TransformerLM(architecture)
    cost = jax.jit(lambda tokens: model(tokens)).lower(jnp.zeros((2, 64), int)).compile().cost_analysis()
    want = counts.total(counts.operators(architecture, batch=2, tokens=64, causal=False)).operations
    assert cost["flops"] == pytest.approx(want, rel=0.03)  # XLA adds norms, softmax and rotations


def test_parameters_equal_the_architectures() -> None:
    for architecture in KINDS.values():
        found = counts.operators(architecture, tokens=1, batch=10_000)
        read = sum(each.parameters for name, each in found.items() if name != "embedding")
        parts = architecture.breakdown()
        assert read == pytest.approx(sum(parts[name] for name in ("attention", "feed_forward", "router")) + 50 * 24)


def test_a_token_reads_the_active_experts_and_many_read_all() -> None:
    one, many = (counts.operators(KINDS["experts"], tokens=n)["feed_forward"].parameters for n in (1, 1000))
    assert many == pytest.approx(2 * one)


def test_steps_with_a_cache_add_up_to_the_causal_prefill() -> None:
    whole = counts.operators(KINDS["grouped, untied"], tokens=9)
    steps = [counts.operators(KINDS["grouped, untied"], tokens=1, past=past) for past in range(9)]
    for name in whole:
        assert sum(step[name].operations for step in steps) == whole[name].operations


def test_arrays_pass_through() -> None:
    n = np.array([1.0, 7.0])
    for array in (n, torch.tensor(n), jnp.asarray(n)):
        found = counts.operators(YI, tokens=array, past=2 * array)
        got = np.asarray(counts.total(found).operations)
        want = [counts.total(counts.operators(YI, tokens=each, past=2 * each)).operations for each in n.tolist()]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_yi_34b() -> None:
    assert YI.parameters() == pytest.approx(34.39e9, rel=1e-3)
    assert counts.cache_bytes(YI, 1) == 245_760
    assert counts.weight_bytes(YI) == 2 * YI.parameters()


LATENT = counts.Latent(width=24, heads=3, query_rank=10, latent=12, plain=8, rotated=4, value=6)


def latent_layer(x: torch.Tensor, cache: torch.Tensor, absorbed: bool) -> torch.Tensor:
    """One layer of latent attention without positions, of x (batch, tokens, width) behind a cache of latent vectors."""
    s, generator = LATENT, torch.Generator().manual_seed(0)
    weight = lambda *shape: torch.randn(shape, generator=generator, dtype=x.dtype)  # noqa: E731
    down, query = weight(s.width, s.query_rank), weight(s.query_rank, s.heads * (s.plain + s.rotated))
    latent, output = weight(s.width, s.latent + s.rotated), weight(s.heads * s.value, s.width)
    keys, values = weight(s.heads, s.latent, s.plain), weight(s.heads, s.latent, s.value)
    q = (x @ down @ query).unflatten(-1, (s.heads, -1)).transpose(1, 2)
    plain, rotated = q.split([s.plain, s.rotated], -1)
    seen = torch.cat([cache, x @ latent], 1)[:, None]
    short, shared = seen.split([s.latent, s.rotated], -1)
    if absorbed:
        p = (torch.cat([plain @ keys.mT, rotated], -1) @ seen.mT).softmax(-1)
        mixed = p @ short @ values
    else:
        k = torch.cat([short @ keys, shared.expand(-1, s.heads, -1, -1)], -1)
        mixed = (q @ k.mT).softmax(-1) @ (short @ values)
    return mixed.transpose(1, 2).flatten(2) @ output


@pytest.mark.parametrize("absorbed", [False, True])
def test_latent_attention_equals_torchs_counter(absorbed: bool) -> None:
    x, cache = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 9, LATENT.latent + LATENT.rotated, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        y = latent_layer(x, cache, absorbed)
    found = counts.latent_attention(LATENT, batch=2, tokens=5, past=9, causal=False, absorbed=absorbed)
    assert counter.get_total_flops() == counts.total(found).operations
    assert torch.allclose(y, latent_layer(x, cache, not absorbed))
    weights = 24 * 10 + 10 * 3 * 12 + 24 * 16 + 3 * 12 * (8 + 6) + 3 * 6 * 24
    assert counts.total(found).parameters == weights
    assert LATENT.cache(9) == 2 * cache[0].numel()
