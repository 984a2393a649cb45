"""Counting by walking: every product of the real models' forward passes, and the bytes of their real caches."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.architecture import Transformer
from common.models.transformer_torch import Block, Cache, TransformerLM, softmax_attention


class OnMeta(TransformerLM):
    """The decoder with shapes and no weights, so that a model of any size can be walked; bfloat16 on the meta device."""

    def __init__(self, architecture: Transformer, context: int) -> None:
        nn.Module.__init__(self)
        a = self.architecture = dataclasses.replace(architecture, context=context)
        if a.norm != "rms" or a.positions != "rope":
            raise ValueError(f"walked are models with rms and rope, not {a.norm} and {a.positions}")
        with torch.device("meta"):
            linear, norm = (
                partial(nn.Linear, bias=False, dtype=torch.bfloat16),
                partial(nn.RMSNorm, a.width, dtype=torch.bfloat16),
            )
            self.embedding = nn.Embedding(a.vocabulary, a.width, dtype=torch.bfloat16)
            self.rotary = torch.empty(2, a.context, a.head_dim // 2, dtype=torch.bfloat16)
            self.blocks = nn.ModuleList(Block(a, layer, softmax_attention, linear, norm) for layer in range(a.depth))
            self.norm = norm()
            if not a.tied:
                self.head = linear(a.width, a.vocabulary)


def operations(model: TransformerLM, tokens: int, past: int = 0) -> int:
    """FLOP of a pass over ``tokens`` new positions behind ``past`` cached ones, by PyTorch's counter; plain products, so that
    masked pairs count."""
    device = model.embedding.weight.device
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    # The counter does not know the fused kernel of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if past:
            empty = model.empty_cache(1)
            model.step(ids, Cache(empty.keys, empty.values, past))
        else:
            model(ids)
    return int(counter.get_total_flops())


def cache_bytes(model: TransformerLM) -> int:
    """Bytes of the buffers of one user's cache of the whole context."""
    cache = model.empty_cache(1)
    return sum(each.numel() * each.element_size() for each in (cache.keys, cache.values))


def graph_operations(model: Any, tokens: int) -> int:
    """FLOP of all products in JAX's graph of a forward pass."""
    import jax
    import jax.numpy as jnp

    return _products(jax.make_jaxpr(lambda ids: model(ids))(jnp.zeros((1, tokens), int)).jaxpr)


def _products(graph: Any) -> int:
    found = 0
    for equation in graph.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            found += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contract)
        found += sum(_products(value.jaxpr) for value in equation.params.values() if hasattr(value, "jaxpr"))
    return found
