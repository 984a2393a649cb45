"""A real cache made smaller on each of the paper's four axes: stored in real buffers, restored, and read by the model.

A prompt is prefilled, its cache is compressed, and the bytes that follow are scored with what is left. Nothing is trained
for it; which heads and layers keep the whole context is chosen on text that is not reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.models.transformer_torch import Cache, TransformerLM, softmax_attention
from kernels.bitpack import pack, unpack
from kernels.block_quant import code_book, dequantize_blockwise, quantize_blockwise
from papers.long_context_peak.analysis import Lever, windowed

Keep = Bool[Tensor, "layer batch kv_head token"]
SINKS = 4
"""First tokens that are always kept (Xiao et al. 2023, StreamingLLM, arXiv 2309.17453)."""
ROWS = 32
"""Windows that are read at once."""
BLOCK = 32
"""Numbers that share a scale of 16 bits."""


@dataclass(frozen=True)
class Stored:
    """A compressed cache: which tokens are kept (a bit each), and their keys and values in ``bits`` bits."""

    keep: Keep
    arrays: dict[str, Tensor]
    bits: int
    dim: int

    @property
    def bytes(self) -> int:
        return -(-self.keep.numel() // 8) + sum(each.numel() * each.element_size() for each in self.arrays.values())


def store(cache: Cache, keep: Keep, bits: int = 16) -> Stored:
    """Gather what is kept into one piece and round it: 16 bits are bfloat16; 8 and 4 are steps of each block's largest
    magnitude, packed, with the magnitudes in bfloat16."""
    if bits not in (16, 8, 4):
        raise ValueError(f"a cache is stored in 16, 8 or 4 bits, not {bits}")
    arrays = {}
    for name, whole in (("keys", cache.keys), ("values", cache.values)):
        kept = whole[..., : keep.shape[-1], :][keep]
        if bits == 16:
            arrays[name] = kept.bfloat16()
            continue
        indices, scales = quantize_blockwise(kept, torch.from_numpy(code_book(f"int{bits}").copy()), block=BLOCK)
        arrays[name], arrays[f"{name}.scales"] = pack(indices, bits=bits), scales.bfloat16()
    return Stored(keep, arrays, bits, cache.keys.shape[-1])


def restore(stored: Stored, like: Cache) -> Cache:
    """The cache again, with zeros where nothing was kept and room for as much as before."""
    count, tokens = int(stored.keep.sum()) * stored.dim, stored.keep.shape[-1]
    restored = []
    for name, room in (("keys", like.keys), ("values", like.values)):
        if stored.bits == 16:
            flat = stored.arrays[name].float().reshape(-1)
        else:
            indices = unpack(stored.arrays[name], bits=stored.bits, count=count)
            book = torch.from_numpy(code_book(f"int{stored.bits}").copy())
            flat = dequantize_blockwise(indices, stored.arrays[f"{name}.scales"].float(), book, block=BLOCK)
        whole = torch.zeros_like(room)
        whole[..., :tokens, :][stored.keep] = flat.reshape(-1, stored.dim)
        restored.append(whole)
    return Cache(restored[0], restored[1], tokens)


@dataclass(eq=False)
class Attention:
    """The mechanism of a model whose past may have holes.

    Attributes:
        keep: what the first positions may be seen of; None: all.
        source: of each layer, the layer whose cache it reads; empty: its own.
        watch: the last so many queries of a prefill, whose attention to each cached token is added up in ``mass``.
    """

    keep: Keep | None = None
    source: tuple[int, ...] = ()
    watch: int = 0
    mass: dict[int, Tensor] = field(default_factory=dict)
    _seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int, start: int = 0) -> Tensor:
        if self.source:
            self._seen[layer] = (k, v)
            layer = self.source[layer]
            k, v = self._seen[layer]
        if self.watch:
            self.mass[layer] = attention_mass(q[:, :, -self.watch :], k, start + q.shape[2] - min(self.watch, q.shape[2]))
        if self.keep is None:
            return softmax_attention(q, k, v, layer, start)
        position = torch.arange(start, start + q.shape[2])
        seen = torch.arange(k.shape[2]) <= position[:, None]
        kept = F.pad(self.keep[layer], (0, k.shape[2] - self.keep.shape[-1]), value=True)
        kept = repeat(kept, "batch kv_head key -> batch (kv_head group) 1 key", group=q.shape[1] // k.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=kept & seen, enable_gqa=q.shape[1] != k.shape[1])


def attention_mass(
    q: Float[Tensor, "batch head seq dim"], k: Float[Tensor, "batch kv_head key dim"], first: int
) -> Float[Tensor, "batch kv_head key"]:
    """The attention that each key gets from these queries, the first of which is at position ``first``, summed over the heads
    that share it."""
    q = rearrange(q, "batch (kv_head group) seq dim -> batch kv_head group seq dim", kv_head=k.shape[1])
    scores = torch.einsum("bhgid,bhjd->bhgij", q, k) * q.shape[-1] ** -0.5
    hidden = torch.arange(k.shape[2]) > first + torch.arange(q.shape[3])[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return reduce(weights, "batch kv_head group seq key -> batch kv_head key", "sum")


def recent(tokens: int, window: int) -> Bool[Tensor, " token"]:
    """The sinks and the last ``window`` tokens."""
    place = torch.arange(tokens)
    return (place < SINKS) | (place >= tokens - window)


def heaviest(mass: Float[Tensor, "layer batch kv_head token"], count: int, window: int, *, lightest: bool = False) -> Keep:
    """The sinks, the last ``window`` and, of the others, those with the most attention, ``count`` in all (as SnapKV does, Li et
    al. 2024, arXiv 2404.14469, without its pooling); ``lightest`` takes those with the least, a control."""
    always = recent(mass.shape[-1], window)
    order = -mass if lightest else mass.masked_fill(always, torch.inf)
    chosen = order.topk(least(count, window), dim=-1).indices
    return torch.zeros_like(mass, dtype=torch.bool).scatter(-1, chosen, True)


def least(count: int, window: int) -> int:
    """Tokens that are kept: sinks and window always are."""
    return max(count, SINKS + window)


class Prefilled(NamedTuple):
    """A prompt that has been read, and what follows it.

    Attributes:
        mass: the attention of the prompt's last queries, by layer.
        rest: bytes from the first behind the prompt on.
    """

    cache: Cache
    mass: Float[Tensor, "layer batch kv_head token"]
    rest: Int[Tensor, "batch rest"]


@torch.no_grad()
def prefill(model: TransformerLM, ids: Int[Tensor, "batch seq"], prompt: int, window: int) -> Prefilled:
    mechanism = _into(model, Attention(watch=window))
    cache = model.step(ids[:, :prompt], model.empty_cache(len(ids)))[1]
    return Prefilled(cache, torch.stack([mechanism.mass[layer] for layer in range(model.architecture.depth)]), ids[:, prompt:])


class Reading(NamedTuple):
    """What the model says of the bytes behind a prompt whose cache is compressed: log-probabilities, and the bytes stored over
    the bytes of all in 16 bits."""

    said: Float[Tensor, "batch rest byte"]
    stored: float


@torch.no_grad()
def read(model: TransformerLM, past: Prefilled, plan: Plan, important: Tensor | None = None) -> Reading:
    keep = plan.keep(past.mass, important)
    stored = store(past.cache, keep, plan.bits)
    _into(model, Attention(keep=None if bool(keep.all()) else keep, source=plan.source(model.architecture.depth)))
    said = model.step(past.rest[:, :-1], restore(stored, past.cache))[0].log_softmax(-1)
    return Reading(said, stored.bytes / store(past.cache, torch.ones_like(keep)).bytes)


def bits(said: Float[Tensor, "batch rest byte"], rest: Int[Tensor, "batch some"]) -> float:
    """Bits per byte of what follows the prompt."""
    return float(F.nll_loss(rearrange(said, "batch rest byte -> (batch rest) byte"), rest[:, 1:].flatten())) / math.log(2)


def divergence(said: Float[Tensor, "batch rest byte"], whole: Float[Tensor, "batch rest byte"]) -> float:
    """Kullback-Leibler divergence of what is said from what the whole cache says, in bits per byte: 0 where nothing changed."""
    return float((whole.exp() * (whole - said)).sum(-1).mean()) / math.log(2)


def _into(model: TransformerLM, mechanism: Attention) -> Attention:
    for block in model.blocks:
        block.attention.mechanism = mechanism  # type: ignore[union-attr]
    return mechanism


@dataclass(frozen=True)
class Plan:
    """One way to compress: numbers in ``bits`` bits; a share ``tokens`` of each head's tokens; windows for the layers or heads
    that are not important; one cache for each ``shared`` layers.

    Attributes:
        by: "layer" or "head": which of them keep all tokens is told by ``important``, the others keep sinks and window.
    """

    bits: int = 16
    tokens: float = 1.0
    by: str = ""
    shared: int = 1
    window: int = 32
    careless: bool = False

    def source(self, depth: int) -> tuple[int, ...]:
        return tuple(layer - layer % self.shared for layer in range(depth)) if self.shared > 1 else ()

    def keep(self, mass: Float[Tensor, "layer batch kv_head token"], important: Tensor | None) -> Keep:
        depth, _, _, length = mass.shape
        keep = torch.ones_like(mass, dtype=torch.bool)
        if self.tokens < 1:
            keep &= heaviest(mass, round(self.tokens * length), self.window, lightest=self.careless)
        if self.by:
            if important is None:
                raise ValueError(f"a plan by {self.by} needs to know which are important")
            everything = important if important.ndim == 2 else important[:, None].expand(-1, mass.shape[2])
            if self.careless:
                everything = ~everything
            keep &= everything[:, None, :, None] | recent(length, self.window)
        if self.shared > 1:
            for layer, source in enumerate(self.source(depth)):
                keep[layer] &= layer == source
        return keep

    def lever(self, prompt: int) -> Lever:
        """The plan as factors on the paper's four axes; half of the layers or heads are important."""
        half = windowed(prompt, 0.5, SINKS + self.window)
        return Lever(
            layers=(half if self.by == "layer" else 1.0) / self.shared,
            heads=half if self.by == "head" else 1.0,
            tokens=least(round(self.tokens * prompt), self.window) / prompt if self.tokens < 1 else 1.0,
            hidden=(self.bits + (0 if self.bits == 16 else 16 / BLOCK)) / 16,
        )


PLANS: Mapping[str, Plan] = {
    "layers: half keep the context": Plan(by="layer"),
    "layers: two share a cache": Plan(shared=2),
    "heads: half keep the context": Plan(by="head"),
    "tokens: a quarter": Plan(tokens=0.25),
    "tokens: sinks and window alone": Plan(tokens=0.0),
    "hidden: 8 bits": Plan(bits=8),
    "hidden: 4 bits": Plan(bits=4),
    "tokens and hidden": Plan(tokens=0.25, bits=4),
}


def choose(model: TransformerLM, past: Prefilled, by: str) -> Tensor:
    """Which half of the layers, or of the (layer, KV head) pairs, hurts most when it alone sees sinks and window only."""
    a = model.architecture
    shape = (a.depth,) if by == "layer" else (a.depth, a.kv_heads)
    hurt = torch.zeros(shape)
    for index in np.ndindex(*shape):
        others = torch.ones(shape, dtype=torch.bool)
        others[index] = False
        hurt[index] = bits(read(model, past, Plan(by=by), others).said, past.rest)
    best = hurt.flatten().topk(hurt.numel() // 2).indices
    return torch.zeros(hurt.numel(), dtype=torch.bool).index_fill(0, best, True).view(shape)


def measure(
    model: TransformerLM, chosen_on: Int[Tensor, "rows seq"], held_out: Int[Tensor, "some seq"], prompt: int, careless: bool
) -> dict[str, dict[str, Any]]:
    """For each plan: bits per byte, what they are more than with the whole cache, the divergence from it, bytes stored over all
    (of equal prompts, so of any part of the rows), and the lever's."""
    window = Plan().window
    past = prefill(model, chosen_on, prompt, window)
    important = {by: choose(model, past, by) for by in ("layer", "head")}
    parts = [prefill(model, part, prompt, window) for part in held_out.split(ROWS)]
    rest = torch.cat([part.rest for part in parts])

    def over_all(plan: Plan) -> Reading:
        found = [read(model, part, plan, important.get(plan.by)) for part in parts]
        return Reading(torch.cat([each.said for each in found]), found[0].stored)

    whole = over_all(Plan()).said
    rows: dict[str, dict[str, Any]] = {"whole cache": {"bits": bits(whole, rest), "added": 0.0, "stored": 1.0, "lever": 1.0}}
    for name, plan in PLANS.items():
        found, lever = over_all(dataclasses.replace(plan, careless=careless)), plan.lever(prompt)
        now = bits(found.said, rest)
        rows[name] = {
            "bits": now, "added": now - rows["whole cache"]["bits"], "divergence": divergence(found.said, whole),
            "stored": found.stored, "lever": lever.multiplier, "axes": lever._asdict(),
        }  # fmt: skip
    return rows
