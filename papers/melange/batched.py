"""A trained byte-level model that decodes many sequences in one step, each at its own length: what the toy server runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from common.models.transformer_torch import TransformerLM


class Batched:
    """Sequences in numbered slots, each with its own keys, values and length; the likeliest token follows.

    Args:
        model: with rotated positions and a tied head.
        slots: sequences that may run at once.
    """

    def __init__(self, model: TransformerLM, slots: int) -> None:
        a = self.architecture = model.architecture
        if a.positions != "rope" or not a.tied or a.output_norm:
            raise ValueError(f"wanted a model with rope, a tied head and no output norm; got {a}")
        self.model, self.slots = model, slots
        self.keys, self.values = model.embedding.weight.new_zeros(2, a.depth, slots, a.kv_heads, a.context, a.head_dim)
        self.lengths = torch.zeros(slots, dtype=torch.int64)

    @torch.no_grad()
    def prefill(self, slot: int, prompt: Int[Tensor, " seq"]) -> int:
        """Read a prompt into a slot and return the first token of its output."""
        logits, cache = self.model.step(prompt[None], self.model.empty_cache(1))
        self.keys[:, slot], self.values[:, slot] = cache.keys[:, 0], cache.values[:, 0]
        self.lengths[slot] = len(prompt)
        return int(logits[0, -1].argmax())

    @torch.no_grad()
    def decode(self, slots: list[int], tokens: list[int]) -> list[int]:
        """Append one token to each of these slots and return the token that follows in each."""
        place = torch.tensor(slots)
        positions = self.lengths[place]
        if int(positions.max()) >= self.architecture.context:
            raise ValueError(f"slot {slots[int(positions.argmax())]} is full: its context is {self.architecture.context} tokens")
        x = self.model.embedding(torch.tensor(tokens))[:, None]
        rotary = self.model.rotary[:, positions, None, None]  # (2, slot, head, seq, dim / 2)
        longest = int(positions.max()) + 1
        seen = (torch.arange(longest) <= positions[:, None])[:, None, None]
        for layer, block in enumerate(self.model.blocks):
            attention, normed = block.attention, block.attention_norm(x)
            q, k, v = (
                rearrange(project(normed), "slot seq (head dim) -> slot head seq dim", dim=self.architecture.head_dim)
                for project in (attention.query, attention.key, attention.value)
            )
            self.keys[layer, place, :, positions] = _rotate(k, rotary)[:, :, 0]
            self.values[layer, place, :, positions] = v[:, :, 0]
            keys, values = self.keys[layer, place, :, :longest], self.values[layer, place, :, :longest]
            grouped = q.shape[1] != keys.shape[1]
            o = F.scaled_dot_product_attention(_rotate(q, rotary), keys, values, attn_mask=seen, enable_gqa=grouped)
            x = x + attention.output(rearrange(o, "slot head seq dim -> slot seq (head dim)"))
            x = x + block.feed_forward(block.feed_forward_norm(x))
        self.lengths[place] += 1
        logits = F.linear(self.model.norm(x)[:, 0], self.model.embedding.weight)
        return [int(each) for each in logits.argmax(-1)]


def _rotate(
    x: Float[Tensor, "slot head seq dim"], rotary: Float[Tensor, "2 slot 1 1 half"]
) -> Float[Tensor, "slot head seq dim"]:
    """Rotate the pairs (x_i, x_{i + dim/2})."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
