"""The ring with an online softmax, which never holds a row of scores: the later Ring Attention (Liu et al. 2023), for comparison.

Keys and values travel together. The output over some keys, o with the logarithm l of its sum of exponentials, and that over
others, o' with l', merge into (e^l o + e^l' o') / (e^l + e^l'). One chunk of keys is the shared kernel's business.
Backward, each block's part is computed again, and the gradients of keys and values travel with them until they are home.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.flash_attention import flash_attention
from papers.sequence_parallelism.ring_torch import Ring, check


def ring_attention_online(
    q: Float[Tensor, "batch head chunk dim"],
    k: Float[Tensor, "batch kv_head chunk dim"],
    v: Float[Tensor, "batch kv_head chunk dim"],
    ring: Ring,
    *,
    causal: bool = False,
) -> Float[Tensor, "batch head chunk dim"]:
    """As :func:`papers.sequence_parallelism.ring_torch.ring_attention`, in memory that does not grow with other ranks' chunks.

    Fewer heads of keys than of queries are shared, as in grouped-query attention. With ``causal`` a rank skips the chunks behind its own: rank n computes n + 1 blocks, and the last one all of them.

    Raises:
        ValueError: chunks differ between the ranks.
    """
    check(q, k, v, ring)
    return _Online.apply(q, k, v, ring, causal)


class _Online(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, causal: bool) -> Tensor:
        out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
        for owner, (keys, values) in ring.around(k, v):
            if _skipped(ring, owner, causal):
                continue
            part, part_lse = _part(q, keys, values, ring, owner, causal)
            total = torch.logaddexp(lse, part_lse)
            out = out * (lse - total).exp()[..., None] + part * (part_lse - total).exp()[..., None]
            lse = total
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ring, ctx.causal = ring, causal
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        ring, (grad,) = ctx.ring, gradients
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for owner, (keys, values) in ring.around(k, v):
            if not _skipped(ring, owner, ctx.causal):
                with torch.enable_grad():
                    inputs = [each.detach().requires_grad_() for each in (q, keys, values)]
                    part, part_lse = _part(*inputs, ring, owner, ctx.causal)
                # Of the merged output: e^(part_lse - lse) times the gradient, and its product with what the part changes.
                share = (part_lse.detach() - lse).exp()
                of_lse = share * (grad * (part.detach() - out)).sum(-1)
                one, two, three = torch.autograd.grad((part, part_lse), inputs, (grad * share[..., None], of_lse))
                dq, dk, dv = dq + one, dk + two, dv + three
            # The sums go with the chunks; after the last pass they are with their owner.
            dk, dv = _onward(ring, dk, dv)
        return dq, dk, dv, None, None


def _part(q: Tensor, k: Tensor, v: Tensor, ring: Ring, owner: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and logarithm of the sum of exponentials over one chunk of keys."""
    starts = {"query_start": ring.group.rank * q.shape[2], "key_start": owner * k.shape[2]}
    return flash_attention(q, k, v, causal=causal, **starts)


def _skipped(ring: Ring, owner: int, causal: bool) -> bool:
    skipped = causal and owner > ring.group.rank
    ring.blocks -= skipped
    return skipped


def _onward(ring: Ring, *sums: Tensor) -> tuple[Tensor, ...]:
    if ring.group.size == 1:
        return sums
    pending, incoming = ring.onward(sums)
    pending.wait()
    return incoming
