"""The decoder of :class:`common.architecture.Transformer` in PyTorch; its twin is :mod:`common.models.transformer_jax`.

The attention mechanism is an argument. It is called as ``attention(q, k, v, layer)`` with
q (batch, heads, seq, head_dim) and k, v (batch, kv_heads, seq, head_dim), positions already applied and the heads of k
and v not repeated, and returns o shaped like q; it must be causal. With a cache it is called as
``attention(q, k, v, layer, start=start)``: query i is at position start + i and must not see keys behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.architecture import Transformer
from common.models import EPSILON, rotary_table
from common.models.weights import initial_weights, to_torch


class Cache(NamedTuple):
    """Keys and values of the first ``length`` positions; what lies behind is free. To take tokens back, lower ``length``."""

    keys: Float[Tensor, "layer batch kv_head context dim"]
    values: Float[Tensor, "layer batch kv_head context dim"]
    length: int


def softmax_attention(
    q: Float[Tensor, "batch head seq dim"],
    k: Float[Tensor, "batch kv_head keys dim"],
    v: Float[Tensor, "batch kv_head keys dim"],
    layer: int,
    start: int = 0,
) -> Float[Tensor, "batch head seq dim"]:
    """o_i = sum_{j <= start + i} softmax_j(q_i . k_j / sqrt(dim)) v_j, query head h with key head h // (heads / kv_heads)."""
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if start == 0 and queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    position = torch.arange(start, start + queries, device=q.device)
    seen = torch.arange(keys, device=q.device) <= position[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)


class Route(NamedTuple):
    """Where one mixture of experts sent its tokens."""

    probabilities: Float[Tensor, "token expert"]
    chosen: Int[Tensor, "token active"]


class TransformerLM(nn.Module):
    """Tokens (batch, seq) to logits (batch, seq, vocabulary).

    Args:
        attention: the mechanism, see the module's text.
        linear: makes every projection; called as ``nn.Linear(inputs, outputs, bias=False, dtype=dtype)``.
        seed: of :func:`common.models.weights.initial_weights`.
        dtype: of weights and computation.
    """

    def __init__(
        self,
        architecture: Transformer,
        attention: Callable[..., Tensor] = softmax_attention,
        linear: Callable[..., nn.Module] = nn.Linear,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        linear = partial(linear, bias=False, dtype=dtype)
        norm = partial({"rms": nn.RMSNorm, "layer": nn.LayerNorm}[a.norm], a.width, eps=EPSILON, dtype=dtype)
        self.rotary: Tensor
        self.embedding = nn.Embedding(a.vocabulary, a.width, dtype=dtype)
        if a.positions == "learned":
            self.positions = nn.Embedding(a.context, a.width, dtype=dtype)
        if a.positions == "rope":
            table = torch.from_numpy(rotary_table(a.context, a.head_dim)).to(dtype)
            self.register_buffer("rotary", table, persistent=False)
        self.blocks = nn.ModuleList(Block(a, layer, attention, linear, norm) for layer in range(a.depth))
        self.norm = norm()
        if not a.tied:
            self.head = linear(a.width, a.vocabulary)
        to_torch(self, initial_weights(a, seed))

    def forward(
        self, tokens: Int[Tensor, "batch seq"], routes: list[Route] | None = None
    ) -> Float[Tensor, "batch seq vocabulary"]:
        """Logits; every mixture of experts appends its route to ``routes``."""
        return self._logits(tokens, None, routes)

    def step(self, tokens: Int[Tensor, "batch seq"], cache: Cache) -> tuple[Float[Tensor, "batch seq vocabulary"], Cache]:
        """Logits of tokens that follow what the cache holds, and the longer cache, which shares the old one's memory."""
        return self._logits(tokens, cache), cache._replace(length=cache.length + tokens.shape[1])

    def empty_cache(self, batch: int) -> Cache:
        """Room for ``context`` positions, in the dtype and on the device of the weights."""
        a, like = self.architecture, self.embedding.weight
        keys, values = like.new_zeros(2, a.depth, batch, a.kv_heads, a.context, a.head_dim)
        return Cache(keys, values, 0)

    def _logits(self, tokens: Tensor, cache: Cache | None, routes: list[Route] | None = None) -> Tensor:
        a = self.architecture
        start = cache.length if cache else 0
        end = start + tokens.shape[1]
        if end > a.context:
            raise ValueError(f"{end} positions are more than the architecture's context of {a.context}")
        x = self.embedding(tokens)
        if a.positions == "learned":
            x = x + self.positions.weight[start:end]
        rotary = self.rotary[:, start:end] if a.positions == "rope" else None
        for block in self.blocks:
            x = block(x, rotary, cache, routes)
        x = self.norm(x)
        return F.linear(x, self.embedding.weight) if a.tied else self.head(x)


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(
        self,
        architecture: Transformer,
        layer: int,
        attention: Callable[..., Tensor],
        linear: Callable[..., nn.Module],
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = Attention(architecture, layer, attention, linear)
        self.feed_forward_norm = norm()
        self.feed_forward = (Mixture if architecture.experts else FeedForward)(architecture, linear)

    def forward(self, x: Tensor, rotary: Tensor | None, cache: Cache | None, routes: list[Route] | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache)
        return x + self.feed_forward(self.feed_forward_norm(x), routes)


class Attention(nn.Module):
    """Projections and positions around the mechanism."""

    def __init__(
        self, architecture: Transformer, layer: int, mechanism: Callable[..., Tensor], linear: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.layer, self.mechanism = layer, mechanism
        self.query = linear(a.width, a.heads * a.head_dim)
        self.key = linear(a.width, a.kv_heads * a.head_dim)
        self.value = linear(a.width, a.kv_heads * a.head_dim)
        self.output = linear(a.heads * a.head_dim, a.width)

    def forward(self, x: Tensor, rotary: Tensor | None, cache: Cache | None) -> Tensor:
        q, k, v = (
            rearrange(project(x), "batch seq (head dim) -> batch head seq dim", dim=self.architecture.head_dim)
            for project in (self.query, self.key, self.value)
        )
        if rotary is not None:
            q, k = _rotate(q, rotary), _rotate(k, rotary)
        if cache is None:
            o = self.mechanism(q, k, v, self.layer)
        else:
            k, v = _extend(cache.keys[self.layer], cache.length, k), _extend(cache.values[self.layer], cache.length, v)
            o = self.mechanism(q, k, v, self.layer, start=cache.length)
        o = rearrange(o, "batch head seq dim -> batch seq (head dim)")
        if self.architecture.output_norm:
            o = F.rms_norm(o, o.shape[-1:], eps=EPSILON)
        return self.output(o)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) or down(gelu(up(x)))."""

    def __init__(self, architecture: Transformer, linear: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.gated = architecture.feed_forward == "swiglu"
        if self.gated:
            self.gate = linear(architecture.width, architecture.hidden)
        self.up = linear(architecture.width, architecture.hidden)
        self.down = linear(architecture.hidden, architecture.width)

    def forward(self, x: Tensor, routes: list[Route] | None = None) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.gated else F.gelu(self.up(x)))


class Mixture(nn.Module):
    """sum_e w_e expert_e(x) over the ``active`` experts with the largest p = softmax(router(x)), w = p / their sum."""

    def __init__(self, architecture: Transformer, linear: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.active = architecture.active
        self.router = linear(architecture.width, architecture.experts)
        self.experts = nn.ModuleList(FeedForward(architecture, linear) for _ in range(architecture.experts))

    def forward(self, x: Tensor, routes: list[Route] | None = None) -> Tensor:
        flat = rearrange(x, "batch seq width -> (batch seq) width")
        probabilities = self.router(flat).softmax(-1)
        weights, chosen = probabilities.topk(self.active, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        if routes is not None:
            routes.append(Route(probabilities, chosen))
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)
            out = out.index_add(0, token, (expert(flat[token]) * weights[token, place, None]).to(out.dtype))
        return out.view_as(x)


def balance_loss(routes: list[Route]) -> Float[Tensor, ""]:
    """Mean over the layers of experts * sum_e f_e P_e, f the share of choices and P the mean probability of each expert;
    1 when all are used alike (Fedus et al. 2022, Switch Transformers, equation 4)."""
    losses = []
    for probabilities, chosen in routes:
        experts = probabilities.shape[1]
        share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        losses.append(experts * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


@torch.no_grad()
def generate(model: TransformerLM, prompt: Int[Tensor, "batch seq"], count: int) -> Int[Tensor, "batch count"]:
    """The ``count`` tokens that follow the prompt when each is the likeliest; the prompt has at least one token."""
    logits, cache = model.step(prompt, model.empty_cache(prompt.shape[0]))
    tokens = [logits[:, -1:].argmax(-1)]
    while len(tokens) < count:
        logits, cache = model.step(tokens[-1], cache)
        tokens.append(logits.argmax(-1))
    return torch.cat(tokens, 1)


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + dim/2})."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _extend(room: Tensor, start: int, new: Tensor) -> Tensor:
    """Write behind the first ``start`` positions and return all that is filled."""
    end = start + new.shape[2]
    room[:, :, start:end] = new.detach()
    return room[:, :, :end]
