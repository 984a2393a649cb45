"""The same GPT as one writes it for one process: the definition that all layouts must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from papers.megatron_lm.shape import Shape, decays


def loss(weights: dict[str, Tensor], shape: Shape, tokens: Int[Tensor, "batch window"]) -> Float[Tensor, ""]:
    """Mean over all tokens of the cross entropy of the next one; weights by name, whole (:meth:`Shape.parts`).

    Source: Radford et al. 2019 (GPT-2), section 2.3, with the exact GELU.
    """
    w = weights
    x = F.embedding(tokens[:, :-1], w["embedding.weight"]) + w["positions.weight"][: tokens.shape[1] - 1]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (shape.width,), w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for block in (f"blocks.{layer}" for layer in range(shape.depth)):
        y = norm(x, f"{block}.attention_norm")
        q, k, v = (
            rearrange(
                F.linear(y, w[f"{block}.attention.qkv.weight"][i], w[f"{block}.attention.qkv.bias"][i]),
                "batch seq (head dim) -> batch head seq dim",
                head=shape.heads,
            )
            for i in range(3)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(rearrange(mixed, "batch head seq dim -> batch seq (head dim)"), f"{block}.attention.output")
        y = linear(norm(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward.up")
        x = x + linear(F.gelu(y), f"{block}.feed_forward.down")
    logits = F.linear(norm(x, "norm"), w["embedding.weight"])
    return F.cross_entropy(rearrange(logits, "batch seq token -> (batch seq) token"), tokens[:, 1:].flatten())


def train(
    weights: dict[str, Tensor], shape: Shape, batches: list[Tensor], rate: float, decay: float = 0.1, clip: float = 1.0
) -> list[float]:
    """AdamW with the norm of the whole gradient clipped, in place; returns the loss of each batch before its step.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2.
    """
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    losses = []
    for step, tokens in enumerate(batches, 1):
        value = loss(weights, shape, tokens)
        gradients = dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))
        norm = torch.stack([each.square().sum() for each in gradients.values()]).sum().sqrt()
        factor = (clip / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for name, w in weights.items():
                gradient = gradients[name] * factor
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.95 * second[name] + 0.05 * gradient**2
                unbiased = first[name] / (1 - 0.9**step), second[name] / (1 - 0.95**step)
                w -= rate * (unbiased[0] / (unbiased[1].sqrt() + 1e-8) + (decay * w if decays(name) else 0.0))
        losses.append(value.item())
    return losses
