"""What a transformer's forward pass costs: operations, parameters and cache, operator by operator, in closed form.

Tokens, past and batch may be numbers or arrays of any framework. A multiply-add counts two operations; norms,
activations, softmax and rotations are not counted, as they are few and vendors do not count them in peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.architecture import Transformer

_MATRICES = {"swiglu": 3, "gelu": 2}


@dataclass(frozen=True)
class Operator:
    """The cost of one operator, all blocks together.

    Attributes:
        operations: FLOP.
        parameters: weights that must be read, in numbers.
        activations: inputs and outputs of the operator's products that must be read or written, in numbers; keys and
            values of the past are among them.
    """

    operations: Any
    parameters: Any
    activations: Any


def operators(
    architecture: Transformer, *, tokens: Any, past: Any = 0, batch: Any = 1, causal: bool = True
) -> dict[str, Operator]:
    """The operators of one forward pass of ``tokens`` new positions behind ``past`` cached ones, by name.

    Args:
        tokens: new positions of each sequence: the prompt (prefill), or 1 (decode).
        past: positions in the cache.
        batch: sequences; weights are read once for all of them.
        causal: whether attention skips the pairs that it masks (tokens (tokens + 1) / 2 of the new ones), as a fused kernel
            may; otherwise all tokens^2, as a plain product of matrices does.

    Returns:
        embedding, queries, keys, values, scores (q k^T), mix (p v), output, feed_forward, head, and router where there are
        experts. Of the experts those are read that are expected to be chosen when all are equally likely:
        experts (1 - (1 - active / experts)^(batch tokens)).

    Source: dense count 2 N + attention, Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with the parts kept apart.
    """
    a, all_tokens = architecture, batch * tokens
    heads, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    pairs = batch * (tokens * past + (tokens * (tokens + 1) / 2 if causal else tokens * tokens))
    cached = batch * (past + tokens)

    def product(inputs: int, outputs: int, copies: int = 1, each: Any = 1, read: Any = 1) -> Operator:
        """``copies`` matrices in every block; each token goes through ``each`` of a kind, ``read`` of which are loaded."""
        # A float: JAX takes no whole number that outgrows 32 bits.
        size = float(a.depth * copies * inputs * outputs)
        return Operator(2 * all_tokens * size * each, size * read, all_tokens * a.depth * copies * (inputs + outputs) * each)

    used: Any = 1
    if a.experts:
        used = a.experts * (1 - (1 - a.active / a.experts) ** all_tokens)
    found = {
        "embedding": Operator(0 * all_tokens, all_tokens * a.width, all_tokens * a.width),
        "queries": product(a.width, heads),
        "keys": product(a.width, kv),
        "values": product(a.width, kv),
        "scores": Operator(2.0 * a.depth * heads * pairs, 0, a.depth * (all_tokens * heads + cached * kv)),
        "mix": Operator(2.0 * a.depth * heads * pairs, 0, a.depth * (all_tokens * heads + cached * kv)),
        "output": product(heads, a.width),
        "feed_forward": product(a.width, a.hidden, _MATRICES[a.feed_forward], a.active if a.experts else 1, used),
        "head": Operator(
            2 * all_tokens * float(a.width * a.vocabulary), a.width * a.vocabulary, all_tokens * (a.width + a.vocabulary)
        ),
    }
    if a.experts:
        found["router"] = product(a.width, a.experts)
    return found


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention: keys and values of all heads come from one short vector, and that is what is cached.

    Attributes:
        width: of the residual stream.
        heads: of queries, keys and values.
        query_rank, latent: features of the two short vectors, of queries and of keys and values.
        plain, rotated: features of a head's query and key without and with positions; the rotated key is shared by all heads.
        value: features of a head's value.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """

    width: int
    heads: int
    query_rank: int
    latent: int
    plain: int
    rotated: int
    value: int

    def cache(self, tokens: Any, element: float = 2.0) -> Any:
        """Bytes of one layer's cache of ``tokens`` positions."""
        return (self.latent + self.rotated) * element * tokens


def latent_attention(
    shape: Latent, *, tokens: Any, past: Any = 0, batch: Any = 1, causal: bool = True, absorbed: bool = False
) -> dict[str, Operator]:
    """The operators of one layer of latent attention, by name; arguments as for :func:`operators`.

    Keys and values of all positions, the cached ones too, are made from their latent vectors (prefill); ``absorbed``: the
    matrices that would make them are applied to the queries and to the mixed latent vectors instead (decode), and every
    head attends to the latent vectors themselves.
    """
    s, new = shape, batch * tokens
    pairs = batch * (tokens * past + (tokens * (tokens + 1) / 2 if causal else tokens * tokens))
    everything = batch * (past + tokens)
    up = float(s.latent * s.heads * (s.plain + s.value))
    key, mixed = (s.latent + s.rotated, s.latent) if absorbed else (s.plain + s.rotated, s.value)
    seen = everything if absorbed else s.heads * everything

    def product(inputs: int, outputs: int) -> Operator:
        size = float(inputs * outputs)
        return Operator(2 * new * size, size, new * (inputs + outputs))

    return {
        "query_down": product(s.width, s.query_rank),
        "queries": product(s.query_rank, s.heads * (s.plain + s.rotated)),
        "latent": product(s.width, s.latent + s.rotated),
        # Made once for every position, or applied once to every query.
        "keys_and_values": Operator(
            2 * (new if absorbed else everything) * up, up, (new if absorbed else everything) * (s.latent + up / s.latent)
        ),
        "scores": Operator(2.0 * s.heads * key * pairs, 0, new * s.heads * key + seen * key),
        "mix": Operator(2.0 * s.heads * mixed * pairs, 0, new * s.heads * mixed + seen * mixed),
        "output": product(s.heads * s.value, s.width),
    }


def total(found: dict[str, Operator]) -> Operator:
    """The sum over operators."""
    parts = list(found.values())
    return Operator(
        sum(each.operations for each in parts), sum(each.parameters for each in parts), sum(each.activations for each in parts)
    )


def cache_bytes(architecture: Transformer, tokens: Any, element: float = 2.0) -> Any:
    """Bytes of the keys and values of ``tokens`` positions: 2 depth kv_heads head_dim element tokens."""
    return 2.0 * architecture.depth * architecture.kv_heads * architecture.head_dim * element * tokens


def weight_bytes(architecture: Transformer, element: float = 2.0) -> float:
    """Bytes of all parameters, a tied head once."""
    return architecture.parameters() * element
