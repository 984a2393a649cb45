"""Decayed causal linear attention in PyTorch, block by block, with the two-pass backward. For any device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""On CPUs the masked half of a block is computed too, so small blocks save work; below this the calls themselves cost."""


def lightning_attention(
    q: Float[Tensor, "batch head n d"],
    k: Float[Tensor, "batch head n d"],
    v: Float[Tensor, "batch head n e"],
    slope: Float[Tensor, " head"],
    *,
    initial_state: Float[Tensor, "batch head d e"] | None = None,
    return_state: bool = False,
    block: int | None = None,
    variant: str = "loop",
) -> Any:
    """O_i = [(Q_i K_i^T) . M] V_i + lambda^r Q_i S, S <- lambda^B S + (lambda^(B-r) K_i)^T V_i; see the package."""
    batch, heads = q.shape[:2]
    folded = [rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v)]
    wide = torch.promote_types(q.dtype, torch.float32)
    if initial_state is None:
        initial_state = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1], dtype=wide)
    start = rearrange(initial_state.to(wide), "b h d e -> (b h) d e")
    rate = repeat(slope.detach().to(wide), "h -> (b h) 1 1", b=batch)
    o, state = _Attention.apply(*folded, start, rate, block or BLOCK, variant)
    o, state = (rearrange(x, "(b h) n e -> b h n e", b=batch, h=heads) for x in (o, state))
    return (o, state) if return_state else o


def lightning_step(
    q: Float[Tensor, "batch head d"],
    k: Float[Tensor, "batch head d"],
    v: Float[Tensor, "batch head e"],
    state: Float[Tensor, "batch head d e"],
    slope: Float[Tensor, " head"],
) -> tuple[Float[Tensor, "batch head e"], Float[Tensor, "batch head d e"]]:
    """S = lambda S_before + k^T v; o = q S."""
    wide = torch.promote_types(q.dtype, torch.float32)
    decay = rearrange(torch.exp(-slope.detach().to(wide)), "h -> h 1 1")
    state = decay * state.to(wide) + rearrange(k.to(wide), "b h d -> b h d 1") * rearrange(v.to(wide), "b h e -> b h 1 e")
    o = rearrange(q.to(wide), "b h d -> b h 1 d") @ state
    return rearrange(o, "b h 1 e -> b h e").to(q.dtype), state


class _Attention(torch.autograd.Function):
    """Keeps q, k, v and the first state, nothing of size n d e: the backward walks over the blocks again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, state: Tensor, rate: Tensor, block: int, variant: str) -> Any:
        ctx.save_for_backward(q, k, v, state, rate)
        ctx.block, ctx.variant = block, variant
        if variant == "left":
            return _forward_left(q, k, v, state, rate, block)
        return _forward_blocks(q, k, v, state, rate, block, variant == "parallel")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dstate: Tensor) -> Any:
        q, k, v, state, rate = ctx.saved_tensors
        if ctx.variant == "left":
            gradients = _backward_left(q, k, v, state, rate, ctx.block, do, dstate)
        else:
            gradients = _backward_blocks(q, k, v, state, rate, ctx.block, ctx.variant == "parallel", do, dstate)
        return (*gradients, None, None, None)


def _forward_blocks(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, rate: Tensor, block: int, together: bool
) -> tuple[Tensor, Tensor]:
    """Algorithm 1. The loop makes a group of each block, the parallel variant one group of all full blocks."""
    o = torch.empty_like(v)
    block = max(1, min(block, q.shape[1]))
    decay = _Decay.of(rate, block)
    for group in _groups(q.shape[1], block, together):
        mask, read, write, whole = decay.cut(group.rows)
        qs, ks, vs = (group.of(x, state.dtype) for x in (q, k, v))
        before, state = _prefix(state, whole, (ks * write).mT @ vs)
        group.put(o, (qs @ ks.mT).mul_(mask) @ vs + (qs * read) @ before)
    return o, state


def _backward_blocks(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, rate: Tensor, block: int, together: bool, do: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    """Algorithm 2: forwards for dq and all that stays within a block, backwards for what dk and dv owe to later blocks."""
    wide = state.dtype
    dq, dk, dv = (torch.empty_like(x, dtype=wide) for x in (q, k, v))
    block = max(1, min(block, q.shape[1]))
    decay = _Decay.of(rate, block)
    groups = _groups(q.shape[1], block, together)
    for group in groups:
        mask, read, write, whole = decay.cut(group.rows)
        qs, ks, vs, dos = (group.of(x, wide) for x in (q, k, v, do))
        before, state = _prefix(state, whole, (ks * write).mT @ vs)
        scores, dscores = (qs @ ks.mT).mul_(mask), (dos @ vs.mT).mul_(mask)
        group.put(dq, dscores @ ks + (dos * read) @ before.mT)
        group.put(dk, dscores.mT @ qs)
        group.put(dv, scores.mT @ dos)
    for group in reversed(groups):
        _, read, write, whole = decay.cut(group.rows)
        qs, ks, vs, dos = (group.of(x, wide) for x in (q, k, v, do))
        # The state after a block gathers what all later blocks read of it, so the prefix runs from the last block.
        after, dstate = _prefix(dstate, whole, (qs * read).mT @ dos, last_first=True)
        group.add(dk, (vs * write) @ after.mT)
        group.add(dv, (ks * write) @ after)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dstate


def _forward_left(q: Tensor, k: Tensor, v: Tensor, state: Tensor, rate: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Every block of keys against all queries from there on: no running state, O(n^2)."""
    n, wide = q.shape[1], state.dtype
    read, write = _edges(rate, n)
    strip = _mask(rate, n, block)
    o = (q.to(wide) * read) @ state
    for a in range(0, n, block):
        ks, vs, weights = k[:, a : a + block].to(wide), v[:, a : a + block].to(wide), strip[:, : n - a, : n - a]
        o[:, a:] += (q[:, a:].to(wide) @ ks.mT).mul_(weights) @ vs
    after = torch.exp(-rate * n) * state + (k.to(wide) * write).mT @ v.to(wide)
    return o.to(v.dtype), after


def _backward_left(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, rate: Tensor, block: int, do: Tensor, dstate: Tensor
) -> tuple[Tensor, ...]:
    n, wide = q.shape[1], state.dtype
    read, write = _edges(rate, n)
    strip = _mask(rate, n, block)
    dq = (do.to(wide) * read) @ state.mT
    dk = (v.to(wide) * write) @ dstate.mT
    dv = (k.to(wide) * write) @ dstate
    for a in range(0, n, block):
        ks, vs, weights = k[:, a : a + block].to(wide), v[:, a : a + block].to(wide), strip[:, : n - a, : n - a]
        qs, dos = q[:, a:].to(wide), do[:, a:].to(wide)
        scores, dscores = (qs @ ks.mT).mul_(weights), (dos @ vs.mT).mul_(weights)
        dq[:, a:] += dscores @ ks
        dk[:, a : a + block] += dscores.mT @ qs
        dv[:, a : a + block] += scores.mT @ dos
    dfirst = torch.exp(-rate * n) * dstate + (q.to(wide) * read).mT @ do.to(wide)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dfirst


class _Decay(NamedTuple):
    """Powers of lambda for a block of B rows, by differences of exponents alone: lambda^-B overflows for steep heads."""

    mask: Tensor
    """(g, 1, B, B): lambda^(i-j) for i >= j, else 0."""
    read: Tensor
    """(g, 1, B, 1): lambda^r, r = 1..B: how row r sees the state before the block."""
    write: Tensor
    """(g, 1, B, 1): lambda^(B-r): what row r leaves in the state after the block."""

    @classmethod
    def of(cls, rate: Tensor, rows: int) -> _Decay:
        read, write = _edges(rate, rows)
        return cls(_mask(rate, rows, rows)[:, None], read[:, None], write[:, None])

    def cut(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mask, read, write for a block of fewer rows, and lambda^rows: a ragged tail writes up to its own last row."""
        read = self.read[:, :, :rows]
        return self.mask[:, :, :rows, :rows], read, self.write[:, :, self.write.shape[2] - rows :], read[:, 0, -1:]


def _edges(rate: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    row = torch.arange(1, rows + 1, device=rate.device, dtype=rate.dtype)[:, None]
    return torch.exp(-rate * row), torch.exp(-rate * (rows - row))


def _mask(rate: Tensor, queries: int, keys: int) -> Tensor:
    age = torch.arange(queries, device=rate.device)[:, None] - torch.arange(keys, device=rate.device)
    return torch.exp(-rate * age.clamp(min=0)).tril()


class _Group(NamedTuple):
    """Consecutive blocks of equally many rows that are computed together."""

    start: int
    blocks: int
    rows: int

    def of(self, x: Tensor, wide: torch.dtype) -> Tensor:
        return self._view(x).to(wide)

    def put(self, target: Tensor, value: Tensor) -> None:
        self._view(target).copy_(value)

    def add(self, target: Tensor, value: Tensor) -> None:
        self._view(target).add_(value)

    def _view(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.start + self.blocks * self.rows].unflatten(1, (self.blocks, self.rows))


def _groups(n: int, block: int, together: bool) -> list[_Group]:
    full = n // block
    groups = [_Group(0, full, block)] if together and full else [_Group(i * block, 1, block) for i in range(full)]
    return [*groups, _Group(full * block, 1, n % block)] if n % block else groups


def _prefix(first: Tensor, decay: Tensor, added: Tensor, last_first: bool = False) -> tuple[Tensor, Tensor]:
    """The states (g, count, d, e) that a group's blocks start from, and the state after them all."""
    if added.shape[1] == 1:
        return first[:, None], torch.addcmul(added[:, 0], decay, first)
    states = torch.empty_like(added)
    for i in reversed(range(added.shape[1])) if last_first else range(added.shape[1]):
        states[:, i] = first
        first = torch.addcmul(added[:, i], decay, first)
    return states, first
