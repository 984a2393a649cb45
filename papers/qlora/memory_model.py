"""Bytes of fine-tuning a LLaMA, counted on the meta device from the tensors that this repository's layers really hold."""

from __future__ import annotations

import torch

from common.architecture import Transformer
from papers.qlora.layers_torch import Linear4bit
from papers.qlora.weights import nbytes

FULL_BYTES = 2 + 2 + 8
"""Of a parameter in full 16-bit fine-tuning: weight, gradient, and two float32 moments of Adam."""


def llama(width: int, depth: int, heads: int, hidden: int, vocabulary: int, context: int = 2048) -> Transformer:
    """A LLaMA as this repository's architecture: no grouped heads, gated, rotated, the head not tied."""
    return Transformer(
        width=width, depth=depth, heads=heads, kv_heads=heads, head_dim=width // heads, hidden=hidden, vocabulary=vocabulary,
        context=context, tied=False,
    )  # fmt: skip


def fine_tuning_bytes(
    a: Transformer, *, rank: int, batch: int, length: int, kind: str = "nf4", double: bool = True
) -> dict[str, int]:
    """Bytes by part while a model is fine-tuned with adapters on every linear layer, each block checkpointed.

    Weights, scales and adapters are tensors on the meta device, made by the layers themselves. Activations are the inputs
    of all blocks, what one block keeps for its backward while it is computed again, and the logits with their gradient in
    float32, all counted as shapes; 16-bit but for the logits.
    """
    matrices = {
        "query": (a.heads * a.head_dim, a.width), "key": (a.kv_heads * a.head_dim, a.width),
        "value": (a.kv_heads * a.head_dim, a.width), "output": (a.width, a.heads * a.head_dim),
        "gate": (a.hidden, a.width), "up": (a.hidden, a.width), "down": (a.width, a.hidden),
    }  # fmt: skip
    packed = scales = adapters = 0
    for n, k in matrices.values():
        layer = Linear4bit(torch.empty(n, k, dtype=torch.bfloat16, device="meta"), kind, double=double)
        packed += nbytes([layer.packed])
        scales += nbytes(each for each in (layer.absmax, layer.scales, layer.offset) if each is not None)
        adapters += nbytes([torch.empty(k + n, rank, dtype=torch.bfloat16, device="meta")])
    rest = nbytes([torch.empty(2 * a.vocabulary + 2 * a.depth + 1, a.width, dtype=torch.bfloat16, device="meta")])
    tokens = batch * length
    # Of one block: the normed inputs twice, q, k, v, o, gate, up and their product, and the adapters' middles.
    block = tokens * (2 * a.width + 4 * a.heads * a.head_dim + 3 * a.hidden + 7 * rank) * 2
    dense = max(n * k for n, k in matrices.values()) * 2
    return {
        "weights": a.depth * packed + rest,
        "scales": a.depth * scales,
        "adapters and gradients": 2 * a.depth * adapters,
        "optimizer": a.depth * adapters * 4,
        "activations": a.depth * tokens * a.width * 2 + block + 2 * tokens * a.vocabulary * 4,
        "one dequantised matrix": dense,
    }


def full_bytes(a: Transformer) -> int:
    """Weights, gradients and Adam's state of full 16-bit fine-tuning, without activations."""
    return a.parameters() * FULL_BYTES


def overhead_bits(n: int = 2048, k: int = 2048) -> dict[str, float]:
    """Bits of scales for each weight, counted from the buffers of a layer, plain and double quantised."""
    found = {}
    for name, double in (("plain", False), ("double", True)):
        layer = Linear4bit(torch.zeros(n, k), double=double)
        held = [each for each in (layer.absmax, layer.scales, layer.offset) if each is not None]
        found[name] = 8 * nbytes(held) / (n * k)
    return found | {"saved": found["plain"] - found["double"]}
