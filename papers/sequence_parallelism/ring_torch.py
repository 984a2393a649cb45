"""Ring self-attention over ranks of torch.distributed: rank n holds chunk n of queries, keys and values.

With N ranks, chunks of C = L / N tokens and scale 1 / sqrt(A), rank n computes its rows of the attention of all L tokens,

    S_n = [q_n k_0^T ... q_n k_{N-1}^T] / sqrt(A),    P_n = softmax(S_n + mask),    o_n = sum_j P_n[:, chunk j] v_j,

where key chunks, then value chunks, go once around the ring. Source: Li et al. 2023, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.distributed import Group, Pending


@dataclass
class Ring:
    """How chunks travel around a group.

    Attributes:
        group: the ranks, in the order of their chunks.
        overlap: the next chunk is under way while this one is computed with; otherwise it is sent afterwards.
        reduce: how gradients of keys and values find their owner, "scatter" or "all", an all-reduce of which a rank keeps
            its part, as in the authors' code; that moves twice as much.
        check: chunk shapes are compared before the first send. A model does that once for all its layers.
        late: a control: blocks that have travelled are taken for those of the rank that many places further on.
        laps: a control: every chunk goes around so many times more.
        blocks: counts the blocks of scores that this rank has computed.
    """

    group: Group
    overlap: bool = True
    reduce: str = "scatter"
    check: bool = True
    late: int = 0
    laps: int = 0
    blocks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.reduce not in ("scatter", "all"):
            raise ValueError(f"reduce is {self.reduce!r}; wanted 'scatter' or 'all'")

    def around(self, *chunks: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """The chunks of all ranks, own ones first, each with the number of its owner: after i passes that of n - i."""
        rank, size = self.group.rank, self.group.size
        current = tuple(each.contiguous() for each in chunks)
        for _ in range(self.laps * size if size > 1 else 0):
            pending, current = self.onward(current)
            pending.wait()
        for step in range(size):
            last = step == size - 1
            if self.overlap and not last:
                pending, incoming = self.onward(current)
            self.blocks += 1
            yield (rank - step + (self.late if step else 0)) % size, current
            if last:
                return
            if not self.overlap:
                pending, incoming = self.onward(current)
            pending.wait()
            current = incoming

    def onward(self, chunks: tuple[Tensor, ...]) -> tuple[Pending, tuple[Tensor, ...]]:
        """Begin to send chunks to the next rank; what comes from the one before is there when the exchange is done."""
        rank, size = self.group.rank, self.group.size
        incoming = tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in chunks)
        send = [(each.contiguous(), (rank + 1) % size) for each in chunks]
        return self.group.exchange(send, [(each, (rank - 1) % size) for each in incoming]), incoming

    def room(self, like: Tensor, *shape: int) -> Tensor:
        """Memory that all blocks together fill; zeros where a fault leaves one out."""
        return like.new_zeros(shape) if self.late else like.new_empty(shape)

    def own_sum(self, parts: Float[Tensor, "rank batch head chunk dim"]) -> Float[Tensor, "batch head chunk dim"]:
        """This rank's part of the sum of all ranks' arrays, which may be overwritten."""
        if self.reduce == "all":
            self.group.all_reduce_into(parts).wait()
            return parts[self.group.rank].clone()
        own = torch.empty_like(parts[0])
        self.group.reduce_scatter_into(own.view(-1), parts.view(-1)).wait()
        return own


def ring_attention(
    q: Float[Tensor, "batch head chunk dim"],
    k: Float[Tensor, "batch head chunk dim"],
    v: Float[Tensor, "batch head chunk dim"],
    ring: Ring,
    *,
    mask: Bool[Tensor, "batch keys"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch head chunk dim"]:
    """This rank's rows of softmax(q k^T / sqrt(dim)) v over the chunks of all ranks; differentiable in q, k and v.

    Args:
        mask: whether each key of the *whole* sequence is seen; each query must see one.
        causal: query i sees keys up to i, counted over the whole sequence.

    Raises:
        ValueError: chunks or their dtypes differ between the ranks (before anything is sent), or the mask is not as long
            as the whole sequence.
    """
    check(q, k, v, ring, mask)
    scores = ring_scores(q * q.shape[-1] ** -0.5, k, ring)
    hidden = _hidden(scores, ring, mask, causal)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return ring_values(scores.softmax(-1), v, ring)


def ring_scores(
    q: Float[Tensor, "batch head chunk dim"], k: Float[Tensor, "batch head chunk dim"], ring: Ring
) -> Float[Tensor, "batch head chunk keys"]:
    """[q k_0^T ... q k_{N-1}^T]: keys go around. Backward they go around again for dq; dk is summed over the ranks."""
    return _RingQK.apply(q, k, ring)


def ring_values(
    weights: Float[Tensor, "batch head chunk keys"], v: Float[Tensor, "batch head chunk dim"], ring: Ring
) -> Float[Tensor, "batch head chunk dim"]:
    """sum_j weights[..., chunk j] v_j: values go around. Backward again for the weights; dv is summed over the ranks."""
    return _RingAV.apply(weights, v, ring)


class _RingQK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, ring: Ring) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.ring = ring
        scores = ring.room(q, *q.shape[:-1], ring.group.size * k.shape[2])
        for owner, (each,) in ring.around(k):
            torch.matmul(q, each.mT, out=_block(scores, owner, k.shape[2]))
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (q, k), ring, (grad,) = ctx.saved_tensors, ctx.ring, gradients
        dq = torch.zeros_like(q)
        for owner, (each,) in ring.around(k):
            dq += _block(grad, owner, k.shape[2]) @ each
        return dq, ring.own_sum(_products(grad, q, ring)), None


class _RingAV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, v: Tensor, ring: Ring) -> Tensor:
        ctx.save_for_backward(weights, v)
        ctx.ring = ring
        out = v.new_zeros(*weights.shape[:-1], v.shape[-1])
        for owner, (each,) in ring.around(v):
            out += _block(weights, owner, v.shape[2]) @ each
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (weights, v), ring, (grad,) = ctx.saved_tensors, ctx.ring, gradients
        of_weights = ring.room(weights, *weights.shape)
        for owner, (each,) in ring.around(v):
            torch.matmul(grad, each.mT, out=_block(of_weights, owner, v.shape[2]))
        return of_weights, ring.own_sum(_products(weights, grad, ring)), None


def check(q: Tensor, k: Tensor, v: Tensor, ring: Ring, mask: Tensor | None = None) -> None:
    """Refuse what cannot go around, on all ranks alike."""
    if ring.check:
        shapes = [tuple(each.shape) for each in (q, k, v)]
        ring.group.agree("shapes and dtype of the chunks of q, k and v", (shapes, str(k.dtype)))
    whole = ring.group.size * k.shape[2]
    if mask is not None and tuple(mask.shape) != (k.shape[0], whole):
        local = " of this rank's chunk; gather the masks of all" if mask.shape[-1] == k.shape[2] else ""
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}{local}; wanted {(k.shape[0], whole)}, a value for each key of the whole sequence"
        )


def _hidden(scores: Tensor, ring: Ring, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Which scores do not count, or None."""
    hidden = None if mask is None else ~mask[:, None, None, :]
    if causal:
        chunk, keys = scores.shape[-2:]
        position = ring.group.rank * chunk + torch.arange(chunk, device=scores.device)
        behind = torch.arange(keys, device=scores.device) > position[:, None]
        hidden = behind if hidden is None else hidden | behind
    return hidden


def _products(scores: Tensor, x: Tensor, ring: Ring) -> Tensor:
    """scores^T x, of the length of the whole sequence, by owner."""
    size = ring.group.size
    chunk = scores.shape[-1] // size
    parts = x.new_empty(size, *x.shape[:2], chunk, x.shape[-1])
    for owner in range(size):
        torch.matmul(_block(scores, owner, chunk).mT, x, out=parts[owner])
    return parts


def _block(scores: Tensor, owner: int, chunk: int) -> Tensor:
    return scores[..., owner * chunk : (owner + 1) * chunk]
