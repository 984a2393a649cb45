"""Attention in tiles in PyTorch, with gradients that compute the weights again. For any device; CPUs have tiles for caches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS, KEYS = 256, 512
"""Of a tile on a CPU; a thread's scores then stay in its second-level cache. Heads that share keys count as rows."""


LOG2_E = math.log2(math.e)


def flash_attention(
    q: Float[Tensor, "batch head seq dim"],
    k: Float[Tensor, "batch kv_head keys dim"],
    v: Float[Tensor, "batch kv_head keys value_dim"],
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int = 0,
    query_start: int = 0,
    key_start: int = 0,
    scale: float = 1.0,
    block: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "batch head seq value_dim"], Float[Tensor, "batch head seq"]]:
    """m' = max(m, max_j s), l <- e^(m-m') l + sum_j e^(s-m'), o <- e^(m-m') o + e^(s-m') v; see the package."""
    mask = Mask(causal, window, max(sinks - key_start, 0), query_start - key_start)
    return _Attention.apply(q, k, v, mask, scale, block)


class Mask(NamedTuple):
    """What a query sees: key j <= i + shift if causal, and then i + shift - j < window or j < sinks."""

    causal: bool
    window: int | None
    sinks: int
    shift: int

    def tiles(self, first: int, last: int, keys: int, width: int) -> Iterator[tuple[slice, bool]]:
        """Stretches of at most ``width`` keys that queries first .. last - 1 see, and whether some pair of one is hidden."""
        end = min(max(last + self.shift, 0), keys) if self.causal else keys
        start = 0 if self.window is None else min(max(first + self.shift - self.window + 1, 0), end)
        for low, high in ((0, min(self.sinks, start)), (start, end)):
            for a in range(low, high, width):
                b = min(a + width, high)
                hidden = self.causal and b - 1 > first + self.shift
                hidden |= self.window is not None and last - 1 + self.shift - a >= self.window and b > self.sinks
                yield slice(a, b), hidden

    def hide(self, scores: Tensor, first: int, last: int, at: slice, known: dict[Any, Tensor]) -> None:
        """Add -inf to what is hidden of scores (group, repeats * (last - first), keys). What is hidden depends on distances
        alone, so that few of these masks differ; ``known`` keeps them."""
        distance, sinks = first + self.shift - at.start, min(max(self.sinks - at.start, 0), at.stop - at.start)
        key = distance, sinks, last - first, at.stop - at.start
        if key not in known:
            age = torch.arange(last - first, device=scores.device)[:, None] + distance
            age = age - torch.arange(at.stop - at.start, device=scores.device)
            hidden = age < 0
            if self.window is not None:
                hidden[:, sinks:] |= age[:, sinks:] >= self.window
            known[key] = scores.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        scores.unflatten(1, (-1, last - first)).add_(known[key])


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, o and lse."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, block: tuple[int, int] | None) -> Any:
        o, lse = _forward(q, k, v, mask, scale, block)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.set_materialize_grads(False)
        ctx.options = mask, scale, block
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        mask, scale, block = ctx.options
        return (*_backward(q, k, v, o, lse, do, dlse, mask, scale, block), None, None, None)


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, block: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    lowest = torch.finfo(wide).min / 2
    o = q.new_empty(*q.shape[:3], v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=wide)
    scratch = _Scratch()
    known: dict[Any, Tensor] = {}
    for tile in _rows(q, k, block):
        queries = tile.rows(q).to(wide) * scale
        top = queries.new_full((*queries.shape[:2], 1), lowest)
        total, out = torch.zeros_like(top), queries.new_zeros(*queries.shape[:2], v.shape[3])
        for at, hidden in mask.tiles(tile.first, tile.last, k.shape[2], tile.width):
            scores = scratch.product(queries, tile.keys(k, at).to(wide).mT)
            if hidden:
                mask.hide(scores, tile.first, tile.last, at, known)
            before, top = top, torch.maximum(top, scores.amax(-1, keepdim=True))
            decay = _exp(before - top)
            weights = _exp(scores.sub_(top))
            total = torch.addcmul(weights.sum(-1, keepdim=True), total, decay)
            out.mul_(decay).baddbmm_(weights, tile.keys(v, at).to(wide))
        # A query that saw a key has at least its largest weight, 1.
        unseen = total == 0
        tile.put(o, out.div_(total.masked_fill(unseen, 1)))
        tile.put(lse[..., None], top.add_(total.log()).masked_fill_(unseen, -torch.inf))
    return o, lse


def _backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor | None, dlse: Tensor | None,
    mask: Mask, scale: float, block: tuple[int, int] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = lse.dtype
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
    do = torch.zeros_like(o) if do is None else do
    dlse = torch.zeros_like(lse) if dlse is None else dlse
    scratch, other = _Scratch(), _Scratch()
    known: dict[Any, Tensor] = {}
    for tile in _rows(q, k, block):
        queries, douts, outs = tile.rows(q).to(wide) * scale, tile.rows(do).to(wide), tile.rows(o).to(wide)
        level, dlevel = tile.rows(lse[..., None]), tile.rows(dlse[..., None])
        # Whatever arrives at a query that saw nothing, NaN of a merge included, ends here: its weights are exp(-inf).
        unseen = level == -torch.inf
        douts = douts.masked_fill(unseen, 0)
        offset = (dlevel - (douts * outs).sum(-1, keepdim=True)).masked_fill_(unseen, 0)
        level = level.masked_fill(unseen, torch.inf)
        dqueries = torch.zeros_like(queries)
        for at, hidden in mask.tiles(tile.first, tile.last, k.shape[2], tile.width):
            keys, values = tile.keys(k, at).to(wide), tile.keys(v, at).to(wide)
            scores = scratch.product(queries, keys.mT)
            if hidden:
                mask.hide(scores, tile.first, tile.last, at, known)
            weights = _exp(scores.sub_(level))
            tile.keys(dv, at).baddbmm_(weights.mT, douts)
            dscores = other.product(douts, values.mT).add_(offset).mul_(weights)
            tile.keys(dk, at).baddbmm_(dscores.mT, queries)
            dqueries.baddbmm_(dscores, keys)
        tile.put(dq, dqueries.mul_(scale))
    return dq, dk.to(k.dtype), dv.to(v.dtype)


class _Scratch:
    """Memory for the scores of one tile after the other: fresh pages would cost a fifth of the product."""

    memory: Tensor | None = None

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        shape = a.shape[0], a.shape[1], b.shape[2]
        if self.memory is None or self.memory.numel() < math.prod(shape):
            self.memory = a.new_empty(math.prod(shape))
        return torch.bmm(a, b, out=self.memory[: math.prod(shape)].view(shape))


def _exp(x: Tensor) -> Tensor:
    """In place. On CPUs exp itself takes a hundred times as long where its result is tiny or nothing; exp2 does not."""
    return x.mul_(LOG2_E).exp2_()


class _Rows(NamedTuple):
    """Queries first .. last - 1 of some key heads of one batch entry, with all heads that read these."""

    batch: int
    groups: slice
    repeats: int
    first: int
    last: int
    width: int

    def rows(self, x: Tensor) -> Tensor:
        return rearrange(self._view(x), "g r i d -> g (r i) d")

    def put(self, x: Tensor, value: Tensor) -> None:
        self._view(x).copy_(rearrange(value, "g (r i) d -> g r i d", r=self.repeats))

    def keys(self, x: Tensor, at: slice) -> Tensor:
        return x[self.batch, self.groups, at]

    def _view(self, x: Tensor) -> Tensor:
        return x[self.batch].unflatten(0, (-1, self.repeats))[self.groups, :, self.first : self.last]


def _rows(q: Tensor, k: Tensor, block: tuple[int, int] | None) -> Iterator[_Rows]:
    (batches, heads, seq, _), groups = q.shape, k.shape[1]
    if not heads:
        return
    repeats = heads // groups
    rows, width = block or (max(ROWS // repeats, 16), KEYS)
    # On a CPU one head for each thread at a time; elsewhere all at once.
    by_thread = q.device.type == "cpu" and not torch.compiler.is_compiling()
    together = torch.get_num_threads() if by_thread else groups
    for batch in range(batches):
        for g in range(0, groups, together):
            for first in range(0, seq, rows):
                yield _Rows(batch, slice(g, min(g + together, groups)), repeats, first, min(first + rows, seq), width)
