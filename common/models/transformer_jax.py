"""The decoder of :class:`common.architecture.Transformer` in flax.nnx; its twin is :mod:`common.models.transformer_torch`.

The attention mechanism is an argument. It is called as ``attention(q, k, v, layer)`` with
q (batch, heads, seq, head_dim) and k, v (batch, kv_heads, seq, head_dim), positions already applied and the heads of k
and v not repeated, and returns o shaped like q; it must be causal. With a cache it is called as
``attention(q, k, v, layer, start=start)``: query i is at position start + i and must not see keys behind it; here k and v
are always ``context`` long and start may be traced, so that every step of a decoding has the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from common.architecture import Transformer
from common.models import EPSILON, rotary_table
from common.models.weights import initial_weights, to_flax


class Cache(NamedTuple):
    """Keys and values of the first ``length`` positions; what lies behind is free. To take tokens back, lower ``length``."""

    keys: Float[Array, "layer batch kv_head context dim"]
    values: Float[Array, "layer batch kv_head context dim"]
    length: int | Int[Array, ""]


def softmax_attention(
    q: Float[Array, "batch head seq dim"],
    k: Float[Array, "batch kv_head keys dim"],
    v: Float[Array, "batch kv_head keys dim"],
    layer: int,
    start: int | Int[Array, ""] = 0,
) -> Float[Array, "batch head seq dim"]:
    """o_i = sum_{j <= start + i} softmax_j(q_i . k_j / sqrt(dim)) v_j, query head h with key head h // (heads / kv_heads)."""
    q = rearrange(q, "batch (kv_head group) seq dim -> batch kv_head group seq dim", kv_head=k.shape[1])
    scores = jnp.einsum("bhgid,bhjd->bhgij", q, k) * q.shape[-1] ** -0.5
    seen = jnp.arange(k.shape[2]) <= start + jnp.arange(q.shape[3])[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    o = jnp.einsum("bhgij,bhjd->bhgid", weights, v)
    return rearrange(o, "batch kv_head group seq dim -> batch (kv_head group) seq dim")


class Route(NamedTuple):
    """Where one mixture of experts sent its tokens."""

    probabilities: Float[Array, "token expert"]
    chosen: Int[Array, "token active"]


class TransformerLM(nnx.Module):
    """Tokens (batch, seq) to logits (batch, seq, vocabulary).

    Args:
        attention: the mechanism, see the module's text.
        linear: makes every projection; called like ``nnx.Linear(inputs, outputs, use_bias=False, param_dtype=..., ...)``.
        seed: of :func:`common.models.weights.initial_weights`.
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
    """

    def __init__(
        self,
        architecture: Transformer,
        attention: Callable[..., Array] = softmax_attention,
        linear: Callable[..., nnx.Module] = nnx.Linear,
        seed: int = 0,
        param_dtype: Any = jnp.float32,
    ) -> None:
        if jax.dtypes.canonicalize_dtype(param_dtype) != param_dtype:
            raise ValueError(f"JAX has no {jnp.dtype(param_dtype).name} here; build the model inside jax.enable_x64(True)")
        a = self.architecture = architecture
        # The layers' own draws are overwritten below, so they draw nothing.
        options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        zeros = nnx.initializers.zeros_init()
        linear = partial(linear, use_bias=False, kernel_init=zeros, **options)
        embed: Callable[[int], nnx.Embed] = partial(nnx.Embed, features=a.width, embedding_init=zeros, **options)  # type: ignore[call-arg]
        norm: Callable[[], nnx.Module]
        if a.norm == "rms":
            norm = partial(nnx.RMSNorm, a.width, epsilon=EPSILON, **options)
        else:
            norm = partial(nnx.LayerNorm, a.width, epsilon=EPSILON, use_fast_variance=False, **options)
        self.embedding = embed(a.vocabulary)
        if a.positions == "learned":
            self.positions = embed(a.context)
        self.blocks = nnx.List([Block(a, layer, attention, linear, norm) for layer in range(a.depth)])
        self.norm = norm()
        if not a.tied:
            self.head = linear(a.width, a.vocabulary)
        to_flax(self, initial_weights(a, seed))

    def __call__(
        self, tokens: Int[Array, "batch seq"], routes: list[Route] | None = None
    ) -> Float[Array, "batch seq vocabulary"]:
        """Logits; every mixture of experts appends its route to ``routes``."""
        return self._logits(tokens, None, routes)[0]

    def step(self, tokens: Int[Array, "batch seq"], cache: Cache) -> tuple[Float[Array, "batch seq vocabulary"], Cache]:
        """Logits of tokens that follow what the cache holds, and the longer cache. Under jit the caller minds the context."""
        logits, cache = self._logits(tokens, cache)
        return logits, cache._replace(length=cache.length + tokens.shape[1])

    def empty_cache(self, batch: int) -> Cache:
        """Room for ``context`` positions, in the dtype of the weights."""
        a = self.architecture
        room = jnp.zeros((a.depth, batch, a.kv_heads, a.context, a.head_dim), self.embedding.embedding[...].dtype)
        return Cache(room, room, 0)

    def _logits(self, tokens: Array, cache: Any, routes: list[Route] | None = None) -> tuple[Array, Any]:
        a, seq = self.architecture, tokens.shape[1]
        start = cache.length if cache else 0
        end = seq if isinstance(start, jax.core.Tracer) else int(start) + seq
        if end > a.context:
            raise ValueError(f"{end} positions are more than the architecture's context of {a.context}")
        x = self.embedding(tokens)
        if a.positions == "learned":
            x = x + jax.lax.dynamic_slice_in_dim(self.positions.embedding[...], start, seq)
        rotary = None
        if a.positions == "rope":
            table = jnp.asarray(rotary_table(a.context, a.head_dim), x.dtype)
            rotary = jax.lax.dynamic_slice_in_dim(table, start, seq, axis=1)
        for block in self.blocks:
            x, cache = block(x, rotary, cache, routes)
        x = self.norm(x)
        return (self.embedding.attend(x) if a.tied else self.head(x)), cache


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(
        self,
        architecture: Transformer,
        layer: int,
        attention: Callable[..., Array],
        linear: Callable[..., nnx.Module],
        norm: Callable[[], nnx.Module],
    ) -> None:
        self.attention_norm = norm()
        self.attention = Attention(architecture, layer, attention, linear)
        self.feed_forward_norm = norm()
        self.feed_forward = (Mixture if architecture.experts else FeedForward)(architecture, linear)

    def __call__(self, x: Array, rotary: Array | None, cache: Any, routes: list[Route] | None = None) -> tuple[Array, Any]:
        o, cache = self.attention(self.attention_norm(x), rotary, cache)
        x = x + o
        return x + self.feed_forward(self.feed_forward_norm(x), routes), cache


class Attention(nnx.Module):
    """Projections and positions around the mechanism."""

    def __init__(
        self, architecture: Transformer, layer: int, mechanism: Callable[..., Array], linear: Callable[..., nnx.Module]
    ) -> None:
        a = self.architecture = architecture
        self.layer, self.mechanism = layer, mechanism
        self.query = linear(a.width, a.heads * a.head_dim)
        self.key = linear(a.width, a.kv_heads * a.head_dim)
        self.value = linear(a.width, a.kv_heads * a.head_dim)
        self.output = linear(a.heads * a.head_dim, a.width)

    def __call__(self, x: Array, rotary: Array | None, cache: Any) -> tuple[Array, Any]:
        q, k, v = (
            rearrange(project(x), "batch seq (head dim) -> batch head seq dim", dim=self.architecture.head_dim)
            for project in (self.query, self.key, self.value)
        )
        if rotary is not None:
            q, k = _rotate(q, rotary), _rotate(k, rotary)
        if cache is None:
            o = self.mechanism(q, k, v, self.layer)
        else:
            corner = (self.layer, 0, 0, cache.length, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, k[None], corner)
            values = jax.lax.dynamic_update_slice(cache.values, v[None], corner)
            cache = Cache(keys, values, cache.length)
            o = self.mechanism(q, keys[self.layer], values[self.layer], self.layer, start=cache.length)
        o = rearrange(o, "batch head seq dim -> batch seq (head dim)")
        if self.architecture.output_norm:
            o = o * jax.lax.rsqrt(jnp.mean(o * o, axis=-1, keepdims=True) + EPSILON)
        return self.output(o), cache


class FeedForward(nnx.Module):
    """down(silu(gate(x)) * up(x)) or down(gelu(up(x)))."""

    def __init__(self, architecture: Transformer, linear: Callable[..., nnx.Module]) -> None:
        self.gated = architecture.feed_forward == "swiglu"
        if self.gated:
            self.gate = linear(architecture.width, architecture.hidden)
        self.up = linear(architecture.width, architecture.hidden)
        self.down = linear(architecture.hidden, architecture.width)

    def __call__(self, x: Array, routes: list[Route] | None = None) -> Array:
        return self.down(nnx.silu(self.gate(x)) * self.up(x) if self.gated else nnx.gelu(self.up(x), approximate=False))


class Mixture(nnx.Module):
    """sum_e w_e expert_e(x) over the ``active`` experts with the largest p = softmax(router(x)), w = p / their sum.

    Every expert sees every token and most get the weight 0: shapes stay fixed, at experts / active times the work.
    """

    def __init__(self, architecture: Transformer, linear: Callable[..., nnx.Module]) -> None:
        self.active = architecture.active
        self.router = linear(architecture.width, architecture.experts)
        self.experts = nnx.List([FeedForward(architecture, linear) for _ in range(architecture.experts)])

    def __call__(self, x: Array, routes: list[Route] | None = None) -> Array:
        flat = rearrange(x, "batch seq width -> (batch seq) width")
        probabilities = jax.nn.softmax(self.router(flat), axis=-1)
        weights, chosen = jax.lax.top_k(probabilities, self.active)
        weights = weights / weights.sum(-1, keepdims=True)
        if routes is not None:
            routes.append(Route(probabilities, chosen))
        dense = jnp.zeros_like(probabilities).at[jnp.arange(len(flat))[:, None], chosen].set(weights)
        out = sum(expert(flat) * dense[:, index, None] for index, expert in enumerate(self.experts))
        return jnp.asarray(out).reshape(x.shape)


def balance_loss(routes: list[Route]) -> Float[Array, ""]:
    """Mean over the layers of experts * sum_e f_e P_e, f the share of choices and P the mean probability of each expert;
    1 when all are used alike (Fedus et al. 2022, Switch Transformers, equation 4)."""
    losses = []
    for probabilities, chosen in routes:
        experts = probabilities.shape[1]
        share = jnp.bincount(chosen.ravel(), length=experts) / chosen.size
        losses.append(experts * (share * probabilities.mean(0)).sum())
    return jnp.stack(losses).mean()


def generate(model: TransformerLM, prompt: Int[Array, "batch seq"], count: int) -> Int[Array, "batch count"]:
    """The ``count`` tokens that follow the prompt when each is the likeliest; compiled whole for each prompt length."""
    if (end := prompt.shape[1] + count - 1) > model.architecture.context:
        raise ValueError(f"{end} positions are more than the architecture's context of {model.architecture.context}")
    graph, state = nnx.split(model)
    return _generate(graph, state, prompt, count)


@partial(jax.jit, static_argnames=("graph", "count"))
def _generate(graph: nnx.GraphDef, state: nnx.State, prompt: Array, count: int) -> Array:
    model = nnx.merge(graph, state)
    logits, cache = model.step(prompt, model.empty_cache(prompt.shape[0]))
    first = logits[:, -1].argmax(-1)

    def next_token(carry: tuple[Array, Cache], _: None) -> tuple[tuple[Array, Cache], Array]:
        token, cache = carry
        logits, cache = model.step(token[:, None], cache)
        return (logits[:, 0].argmax(-1), cache), token

    (last, _), earlier = jax.lax.scan(next_token, (first, cache._replace(length=jnp.asarray(cache.length))), length=count - 1)
    return jnp.concatenate([earlier.T, last[:, None]], axis=1)


def _rotate(x: Array, rotary: Array) -> Array:
    """Rotate the pairs (x_i, x_{i + dim/2})."""
    cos, sin = rotary
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
