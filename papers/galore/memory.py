"""Bytes of training, counted: the optimizer makes its state on the meta device, where 7 billion parameters cost nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.allocations import Allocations
from common.architecture import Transformer
from common.models.weights import shapes
from papers.galore import published
from papers.galore.optimizer_torch import GaLore, GaLoreAdamW, GaLoreAdamW8bit

WORDS = ("attention", "feed_forward")
"""A matrix is projected if its name contains one of these words; the paper projects attention and MLP alone."""


def llama(size: str) -> Transformer:
    """One of the paper's models; its head is not tied."""
    known: dict[str, Any] = {name: value for name, value in published.SIZES[size].items() if name != "rank"}
    # The 1B model has a hidden width that 32 heads of 64 features fit beside, as its code has it.
    return Transformer(
        **known, kv_heads=known["heads"], head_dim=known["width"] // known["heads"], vocabulary=published.VOCABULARY,
        context=2048, tied=False,
    )  # fmt: skip


def projected(name: str, shape: tuple[int, ...], words: tuple[str, ...] = WORDS) -> bool:
    return len(shape) == 2 and any(word in name for word in words) and "norm" not in name


def groups(parameters: Mapping[str, Tensor], words: tuple[str, ...] = WORDS, **projection: Any) -> list[dict[str, Any]]:
    """Parameter groups for the optimizers: matrices of attention and feed-forward with these keys, and the others."""
    chosen = {name for name, each in parameters.items() if projected(name, tuple(each.shape), words)}
    matrices = [each for name, each in parameters.items() if name in chosen]
    others = [each for name, each in parameters.items() if name not in chosen]
    return [g for g in ({"params": matrices, **projection}, {"params": others}) if g["params"]]


def make(
    method: str, parameters: Mapping[str, Tensor], projection: dict[str, Any], words: tuple[str, ...] = WORDS, **options: Any
) -> GaLore:
    """An optimizer by the name of the method: full, galore, full 8-bit, galore 8-bit, galore 8-bit all (projectors too).

    ``projection`` are the keys of a projected group, ``options`` those of the optimizer.
    """
    kind = GaLoreAdamW8bit if "8-bit" in method else GaLoreAdamW
    if method.endswith("all"):
        options["quantize_projector"] = True
    return kind(groups(parameters, words, **projection if method.startswith("galore") else {}), **options)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors of an optimizer's state."""
    return sum(each.untyped_storage().nbytes() for each in state_tensors(optimizer))


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]


@functools.cache
def counted_state(size: str, method: str, words: tuple[str, ...] = WORDS, **options: Any) -> int:
    """Bytes of the state that the optimizer makes for one of the paper's models in bfloat16."""
    parameters = meta_parameters(llama(size))
    optimizer = make(method, parameters, {"rank": published.SIZES[size]["rank"]}, words, **options)
    for each in parameters.values():
        each.grad = torch.empty_like(each)
        optimizer.step()
        each.grad = None
    return state_bytes(optimizer)


def meta_parameters(architecture: Transformer) -> dict[str, Tensor]:
    """Parameters without content, in bfloat16."""
    return {
        name: nn.Parameter(torch.empty(shape, dtype=torch.bfloat16, device="meta"))
        for name, shape in shapes(architecture).items()
    }


def closed_state(size: str, method: str) -> float:
    """The same by formula: m r + 2 r n for each projected matrix (m <= n), 2 m n for all others; in bfloat16 twice that, in
    8 bits once, and 4 / 256 for the scales of the codes."""
    rank, total = published.SIZES[size]["rank"], 0.0
    moment = 1 + 4 / 256 if "8-bit" in method else 2
    projector = 1 + 4 / 256 if method.endswith("all") else 2
    for name, shape in shapes(llama(size)).items():
        if method.startswith("galore") and projected(name, shape):
            m, n = sorted(shape)
            total += m * rank * projector + 2 * rank * n * moment
        else:
            count = shape[0] * (shape[1] if len(shape) == 2 else 1)
            # Small tensors keep float32.
            total += 2 * count * (4 if "8-bit" in method and count < 4096 else moment)
    return total


def weight_bytes(size: str) -> int:
    """Of the parameters in bfloat16."""
    return 2 * llama(size).parameters()


def budget(size: str, states: float, per_layer: bool, activations: float = published.ACTIVATIONS) -> dict[str, float]:
    """GB (10^9 bytes) of weights, optimizer state, gradients and activations; layer by layer, the gradient of the largest
    parameter is all there is at a time."""
    largest = 2 * max(int(np.prod(shape)) for shape in shapes(llama(size)).values())
    gradients = largest if per_layer else weight_bytes(size)
    parts = {"weights": weight_bytes(size), "states": states, "gradients": gradients, "activations": activations}
    return {name: value / 1e9 for name, value in parts.items()}


def fits(budget: dict[str, float], card: float = published.CARD) -> bool:
    """Whether a card of so many GB holds it all."""
    return sum(budget.values()) < card


def layer_share(rows: int, columns: int) -> float:
    """Bytes that GaLore keeps for one float32 layer at a quarter of its rank, projector included, over those of Adam."""
    kept = {}
    for method in ("full", "galore"):
        parameter = nn.Parameter(torch.empty(rows, columns, device="meta"))
        parameter.grad = torch.empty_like(parameter)
        optimizer = make(method, {"attention": parameter}, {"rank": min(rows, columns) // 4})
        optimizer.step()
        kept[method] = state_bytes(optimizer)
    return kept["galore"] / kept["full"]


def counted_step(
    size: str, method: str, tokens: int, per_layer: bool = True, checkpointing: bool = False, **options: Any
) -> float:
    """GB at the high-water mark of a whole training step, weights and states included, in bfloat16.

    Forward, backward and update run on the meta device, operation by operation; each storage is counted while it lives. The
    step is one without a new decomposition. What an operation of PyTorch needs inside itself is not seen.

    Args:
        tokens: one sequence of so many.
        checkpointing: keep only the input of each block and compute the block again in the backward pass.
    """
    from papers.galore.per_layer import update_each_layer

    model = _MetaModel(llama(size), checkpointing)
    parameters = dict(model.named_parameters())
    optimizer = make(method, parameters, {"rank": published.SIZES[size]["rank"]}, **options)
    for each in parameters.values():
        each.grad = torch.empty_like(each)
        optimizer.step()
        each.grad = None
    if per_layer:
        update_each_layer(optimizer)
    # No list of the states is kept here: it would hold old codes alive beside new ones.
    with Allocations(*parameters.values(), *state_tensors(optimizer), granularity=512) as counted:
        loss = model(torch.empty(1, tokens, dtype=torch.int64, device="meta"))
        loss.backward()
        optimizer.step()
    return counted.peak / 1e9


class _MetaModel(nn.Module):
    """The decoder of :mod:`common.models.transformer_torch` without content; its loss takes the next token."""

    def __init__(self, architecture: Transformer, checkpointing: bool) -> None:
        from common.models.transformer_torch import Block

        super().__init__()
        a, kind = architecture, torch.bfloat16
        self.checkpointing = checkpointing
        with torch.device("meta"):
            linear = partial(nn.Linear, bias=False, dtype=kind)
            norm = partial(nn.RMSNorm, a.width, eps=1e-5, dtype=kind)
            self.embedding = nn.Embedding(a.vocabulary, a.width, dtype=kind)
            self.blocks = nn.ModuleList(Block(a, layer, _attention, linear, norm) for layer in range(a.depth))
            self.norm, self.head = norm(), linear(a.width, a.vocabulary)
            self.rotary = torch.empty(2, a.context, a.head_dim // 2, dtype=kind)

    def forward(self, tokens: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        rotary, x = self.rotary[:, : tokens.shape[1]], self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, rotary, None, use_reentrant=False) if self.checkpointing else block(x, rotary, None)
        logits = self.head(self.norm(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def _attention(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
    return _Fused.apply(q, k, v)


class _Fused(torch.autograd.Function):
    """What a fused attention kernel holds: the output and one float32 number for each row; no matrix of scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, o, q.new_empty(q.shape[:3], dtype=torch.float32))
        return o

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])
