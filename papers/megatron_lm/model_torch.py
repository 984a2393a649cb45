"""One stage of the GPT on one rank: its layers, each split over the tensor ranks, the embedding at the first stage and the
loss at the last."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.distributed import Group
from common.distributed.differentiable import copy_to
from papers.megatron_lm.layers_torch import Column, Row, cross_entropy, embed
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape, cut


class Stage(nn.Module):
    """A piece of the model that the engine runs.

    Attributes:
        batch: tokens of each microbatch, (b, s + 1); set before a run.
        scale: factor on the loss, 1 / m.
        first_sequence, seed: number of the replica's first sequence in the global batch, and the step's seed; with layer and
            head they are all that dropout depends on, so a layout changes none of its masks.
    """

    def __init__(
        self,
        shape: Shape,
        layout: Layout,
        stage: int,
        group: Group,
        *,
        recompute: bool = False,
        dropout: float = 0.0,
        **kind: Any,
    ) -> None:
        super().__init__()
        self.shape, self.group, self.recompute, self.dropout = shape, group, recompute, dropout
        self.first, self.last = stage == 0, stage == layout.stages - 1
        if self.first or self.last:  # tied: the last stage has a copy, and their gradients are summed
            rows = shape.padded(layout.tensor) // layout.tensor
            self.embedding = Table(rows, shape.width, kind)
        if self.first:
            self.positions = Table(shape.context, shape.width, kind)
        self.blocks = nn.ModuleDict({str(i): Block(shape, i, group, dropout, kind) for i in layout.layers(shape, stage)})
        if self.last:
            self.norm = nn.LayerNorm(shape.width, **kind)
        self.batch: list[Tensor] = []
        self.first_sequence, self.scale, self.seed = 0, 1.0, 0

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take this rank's part of whole weights."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                part = cut(name, weights[name], self.group.size, self.group.rank)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(part)))

    def forward(self, microbatch: int, x: Float[Tensor, "batch seq width"] | None) -> Tensor:
        """Activations of the next stage, or at the last one the scaled mean loss."""
        tokens = self.batch[microbatch]
        masks = Masks(self.dropout, self.seed, self.first_sequence + microbatch * len(tokens), len(tokens), tokens.device)
        if self.first:
            x = self._embed(tokens[:, :-1], masks)
        assert x is not None
        for block in self.blocks.values():
            x = _Recomputed.apply(x, block, masks) if self.recompute else block(x, masks)
        return self._loss(x, tokens[:, 1:]) if self.last else x

    def _embed(self, tokens: Int[Tensor, "batch seq"], masks: Masks) -> Float[Tensor, "batch seq width"]:
        x = embed(tokens, self.embedding.weight, self.group) + self.positions.weight[: tokens.shape[1]]
        return masks.drop(x, "embedding")

    def _loss(self, x: Float[Tensor, "batch seq width"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        logits = F.linear(copy_to(self.norm(x), self.group), self.embedding.weight)
        return cross_entropy(logits, targets, self.shape.vocabulary, self.group).mean() * self.scale

    def backward(self, x: Tensor | None, y: Tensor, gradient: Tensor | None) -> Tensor | None:
        torch.autograd.backward(y, gradient)
        return None if x is None else x.grad


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)): heads, and features of the feed-forward, are split."""

    def __init__(self, shape: Shape, layer: int, group: Group, dropout: float, kind: dict[str, Any]) -> None:
        super().__init__()
        h, t = shape.width, group.size
        self.layer, self.group, self.heads = layer, group, shape.heads // t
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(h, **kind), nn.LayerNorm(h, **kind)
        self.attention, self.feed_forward = Attention(h, t, group, kind), FeedForward(h, t, group, kind)

    def forward(self, x: Float[Tensor, "batch seq width"], masks: Masks) -> Float[Tensor, "batch seq width"]:
        x = x + masks.drop(self._attend(copy_to(self.attention_norm(x), self.group), masks), f"{self.layer} attention")
        hidden = F.gelu(self.feed_forward.up(copy_to(self.feed_forward_norm(x), self.group)))
        return x + masks.drop(self.feed_forward.down(hidden), f"{self.layer} feed_forward")

    def _attend(self, x: Float[Tensor, "batch seq width"], masks: Masks) -> Float[Tensor, "batch seq width"]:
        q, k, v = rearrange(
            self.attention.qkv(x), "batch seq (part head dim) -> part batch head seq dim", part=3, head=self.heads
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        probabilities = scores.masked_fill(future, -torch.inf).softmax(-1)
        probabilities = masks.drop_heads(probabilities, self.layer, self.group.rank * self.heads)
        return self.attention.output(rearrange(probabilities @ v, "batch head seq dim -> batch seq (head dim)"))


class Attention(nn.Module):
    """The products around the mixing of heads; a rank's columns of queries, keys and values are whole heads."""

    def __init__(self, width: int, tensor: int, group: Group, kind: dict[str, Any]) -> None:
        super().__init__()
        self.qkv = Column((3, width // tensor, width), **kind)
        self.output = Row(width, width // tensor, group, **kind)


class FeedForward(nn.Module):
    """The two products of the feed-forward network."""

    def __init__(self, width: int, tensor: int, group: Group, kind: dict[str, Any]) -> None:
        super().__init__()
        self.up = Column((4 * width // tensor, width), **kind)
        self.down = Row(width, 4 * width // tensor, group, **kind)


class Table(nn.Module):
    """Rows that are looked up."""

    def __init__(self, rows: int, width: int, kind: dict[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, **kind))


class _Recomputed(torch.autograd.Function):
    """block(x) that keeps x alone: its backward pass runs all of the forward pass again, as the paper counts it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block, masks: Masks) -> Tensor:
        ctx.block, ctx.masks = block, masks
        ctx.save_for_backward(x)
        return block(x, masks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            torch.autograd.backward(ctx.block(again, ctx.masks), gradients[0])
        return again.grad, None, None


class Masks:
    """Dropout whose masks follow from seed, sequence, place and head, so that a layout changes none of them.

    Tensor ranks drop the same numbers of what they share and each its own heads', as different seeds on different ranks do
    in Megatron (paper's code, ``tensor_parallel/random.py``); a recomputed pass draws the same again.
    """

    def __init__(self, rate: float, seed: int, first: int, count: int, device: torch.device) -> None:
        self.rate, self.seed, self.sequences, self.device = rate, seed, range(first, first + count), device

    def drop(self, x: Float[Tensor, "batch seq width"], place: str) -> Float[Tensor, "batch seq width"]:
        """Outside tensor parallelism: the same on all its ranks."""
        if not self.rate:
            return x
        return x * torch.stack([self._mask(x.shape[1:], sequence, place) for sequence in self.sequences]).to(x.dtype)

    def drop_heads(self, x: Float[Tensor, "batch head seq keys"], layer: int, first: int) -> Float[Tensor, "batch head seq keys"]:
        """Inside it: heads ``first`` and following."""
        if not self.rate:
            return x
        masks = [
            torch.stack([self._mask(x.shape[2:], sequence, f"{layer} head {first + i}") for i in range(x.shape[1])])
            for sequence in self.sequences
        ]
        return x * torch.stack(masks).to(x.dtype)

    def _mask(self, size: torch.Size, sequence: int, place: str) -> Tensor:
        number = np.random.SeedSequence([self.seed, sequence, *place.encode()]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self.device).manual_seed(int(number) >> 1)
        kept = torch.rand(size, generator=generator, device=self.device) >= self.rate
        return kept / (1 - self.rate)
