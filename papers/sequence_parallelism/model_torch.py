"""The encoder of :mod:`papers.sequence_parallelism.encoder` in PyTorch: the whole model, or what one rank has of it.

The same module serves one process and every form of parallelism: attention over chunks is an argument, as in the
repository's other models, and with a tensor group each rank has some of the heads and hidden features (Shoeybi et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from common.distributed import Group
from common.distributed.differentiable import copy_to, reduce_from
from papers.sequence_parallelism.data import IGNORED
from papers.sequence_parallelism.encoder import Place, Shape, check_tensor
from papers.sequence_parallelism.linformer_torch import linformer_attention

EPSILON = 1e-12
"""Added to the variance in every norm, as in BERT."""

Attend = Callable[..., Tensor]


def whole_attention(
    q: Float[Tensor, "batch head seq dim"],
    k: Float[Tensor, "batch head seq dim"],
    v: Float[Tensor, "batch head seq dim"],
    mask: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch head seq dim"]:
    """softmax(q k^T / sqrt(dim)) v over the keys that the mask shows."""
    scores = q * q.shape[-1] ** -0.5 @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return scores.softmax(-1) @ v


class Encoder(nn.Module):
    """
    Args:
        attend: ``attend(q, k, v, mask=...)``, the attention of this rank's tokens.
        place: of this rank in the grid: its stage and its share of tensors and sequence.
        tensor, sequence: its groups, where it has any; the latter only for Linformer.
    """

    def __init__(
        self,
        shape: Shape,
        attend: Attend = whole_attention,
        place: Place | None = None,
        tensor: Group | None = None,
        sequence: Group | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.shape, self.place = shape, place or Place()
        check_tensor(shape, self.place.tensor[1])
        width = shape.width
        if self.place.first:
            self.tokens = nn.Embedding(shape.vocabulary, width, dtype=dtype)
            self.positions = nn.Embedding(shape.length, width, dtype=dtype)
            self.segments = nn.Embedding(2, width, dtype=dtype)
            self.norm = nn.LayerNorm(width, eps=EPSILON, dtype=dtype)
        layers = self.place.layers(shape.depth)
        self.blocks = nn.ModuleDict({str(i): Block(shape, attend, self.place, tensor, sequence, dtype) for i in layers})
        if self.place.last:
            self.head = nn.Linear(width, shape.vocabulary, dtype=dtype)
            self.pooler = nn.Linear(width, width, dtype=dtype)
            self.order = nn.Linear(width, 2, dtype=dtype)

    def embed(
        self, tokens: Int[Tensor, "batch chunk"], segments: Int[Tensor, "batch chunk"], start: int = 0
    ) -> Float[Tensor, "batch chunk width"]:
        """The first stage's input; positions count from the start of the whole sequence."""
        if (end := start + tokens.shape[1]) > self.shape.length:
            raise ValueError(f"{end} tokens, filling included, are more than the {self.shape.length} positions of the model")
        positions = self.positions.weight[start:end]
        return self.norm(self.tokens(tokens) + positions + self.segments(segments))

    def forward(
        self, x: Float[Tensor, "batch chunk width"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch chunk width"]:
        """The blocks of this stage."""
        for block in self.blocks.values():
            x = block(x, mask)
        return x

    def token_loss(self, x: Float[Tensor, "batch chunk width"], labels: Int[Tensor, "batch chunk"]) -> Float[Tensor, ""]:
        """Sum of the cross-entropies of the masked tokens of this chunk."""
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def order_loss(self, x: Float[Tensor, "batch chunk width"], order: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Sum of the cross-entropies of the order; only the first rank of the sequence has the token that it is read from."""
        return F.cross_entropy(self.order(torch.tanh(self.pooler(x[:, 0]))), order, reduction="sum")


class Block(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x))."""

    def __init__(
        self, shape: Shape, attend: Attend, place: Place, tensor: Group | None, sequence: Group | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.attention = Attention(shape, attend, place, tensor, sequence, dtype)
        self.attention_norm = nn.LayerNorm(shape.width, eps=EPSILON, dtype=dtype)
        self.feed_forward = FeedForward(shape.width, place.tensor[1], tensor, dtype)
        self.feed_forward_norm = nn.LayerNorm(shape.width, eps=EPSILON, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


class Attention(nn.Module):
    """Projections around the attention of this rank's heads and tokens."""

    def __init__(
        self, shape: Shape, attend: Attend, place: Place, tensor: Group | None, sequence: Group | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.attend, self.tensor, self.sequence, self.dim = attend, tensor, sequence, shape.width // shape.heads
        features = shape.width // place.tensor[1]
        self.query = nn.Linear(shape.width, features, dtype=dtype)
        self.key = nn.Linear(shape.width, features, bias=False, dtype=dtype)
        self.value = nn.Linear(shape.width, features, dtype=dtype)
        self.output = nn.Linear(features, shape.width, dtype=dtype)
        if shape.rows:
            if shape.length % place.sequence[1]:
                raise ValueError(
                    f"{place.sequence[1]} ranks cannot share {shape.length} columns of Linformer's projections evenly"
                )
            columns = shape.length // place.sequence[1]
            self.key_columns = nn.Parameter(torch.empty(shape.rows, columns, dtype=dtype))
            self.value_columns = nn.Parameter(torch.empty(shape.rows, columns, dtype=dtype))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = copied(x, self.tensor)
        q, k, v = (
            rearrange(project(x), "batch seq (head dim) -> batch head seq dim", dim=self.dim)
            for project in (self.query, self.key, self.value)
        )
        if hasattr(self, "key_columns"):
            if mask is not None:
                raise ValueError("Linformer mixes the keys before a mask could hide them; give sequences without filling")
            # All heads use the same columns, and each rank has some of the heads.
            columns = [copied(each, self.tensor) for each in (self.key_columns, self.value_columns)]
            o = linformer_attention(q, k, v, *columns, self.sequence)
        else:
            o = self.attend(q, k, v, mask=mask)
        return summed(rearrange(o, "batch head seq dim -> batch seq (head dim)"), self.output, self.tensor)


class FeedForward(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(
        self,
        width: int,
        share: int,
        tensor: Group | None,
        dtype: torch.dtype,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.tensor, self.activation = tensor, activation
        self.up = nn.Linear(width, 4 * width // share, dtype=dtype)
        self.down = nn.Linear(4 * width // share, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return summed(self.activation(self.up(copied(x, self.tensor))), self.down, self.tensor)


def copied(x: Tensor, tensor: Group | None) -> Tensor:
    """x in front of layers whose outputs the ranks share out."""
    return x if tensor is None else copy_to(x, tensor)


def summed(x: Tensor, layer: nn.Linear, tensor: Group | None) -> Tensor:
    """A layer whose inputs the ranks share out: products are summed, and the bias is added once."""
    return layer(x) if tensor is None else reduce_from(F.linear(x, layer.weight), tensor) + layer.bias
