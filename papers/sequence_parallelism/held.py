"""Memory of a rank: numbers that weights and the backward pass hold, by looking at every tensor that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.allocations import Allocations, Saved
from common.distributed import Group
from papers.sequence_parallelism import memory_model
from papers.sequence_parallelism.alternatives_torch import dense_attention, fused_attention, gathered_attention
from papers.sequence_parallelism.config import Config, Fault
from papers.sequence_parallelism.encoder import Place, Shape
from papers.sequence_parallelism.linformer_torch import linformer_attention
from papers.sequence_parallelism.model_torch import Attention, Block, FeedForward
from papers.sequence_parallelism.online_torch import ring_attention_online
from papers.sequence_parallelism.ring_torch import Ring, ring_attention

if TYPE_CHECKING:  # every rank imports this module
    from common.distributed import Crew
    from common.ledger import Value

COPIES = 4
"""A weight, its gradient and Adam's two moments."""


def kept(function: Callable[[], Any], module: nn.Module | None = None) -> int:
    """Numbers that autograd keeps for the backward pass of what ``function`` computes, each memory once; weights of the
    module are not among them."""
    with Saved(*(module.parameters() if module else ())) as saved:
        result = function()
    del result  # what is kept must live until here
    return saved.numbers


def block_numbers(group: Group, what: str, how: str, batch: int, length: int, width: int, heads: int) -> tuple[int, int]:
    """(weights, numbers kept) of a rank for one block, built for ``how`` = tensor or sequence parallelism."""
    torch.manual_seed(0)
    shape = Shape(width, 1, heads, length)
    at = (group.rank, group.size)
    place = Place(tensor=at) if how == "tensor" else Place(sequence=at)
    tensor = group if how == "tensor" else None
    attend = dense if how == "tensor" else ring(group)
    tokens = length if how == "tensor" else length // group.size
    if what == "layer":
        module: nn.Module = Block(shape, attend, place, tensor, None, torch.float32)
    elif what == "attention":
        module = Attention(shape, attend, place, tensor, None, torch.float32)
    else:
        activation = torch.relu_ if what == "lean MLP" else torch.nn.functional.gelu
        module = FeedForward(width, place.tensor[1], tensor, torch.float32, activation)
    module.to(group.device)
    x = torch.randn(batch, tokens, width, device=group.device).requires_grad_()
    # What comes in is the output of something before, so that it counts if it is kept.
    call = (lambda: module(x * 1.0, None)) if what == "layer" else (lambda: module(x * 1.0))
    return sum(p.numel() for p in module.parameters()), kept(call, module)


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return dense_attention(q, k, v)


def ring(group: Group) -> Callable[..., Tensor]:
    return lambda q, k, v, mask=None: ring_attention(q, k, v, Ring(group))


def blocks(crew: Crew) -> dict[str, Value]:
    """Numbers held by the encoder's blocks over the paper's formulas, and the length from which the sequence wins."""
    size, batch, length, width, heads = 2, 8, 256, 32, 4

    def total(what: str, how: str, batch: int, length: int) -> int:
        weights, saved = crew.run(size, block_numbers, what, how, batch, length, width, heads)[0]
        return COPIES * weights + saved

    words, lean, crossing = {}, {}, {}
    for how in ("tensor", "sequence"):
        mlp = memory_model.mlp(how, size, batch * length, width)
        attention = memory_model.attention(how, size, batch, length, width, heads)
        words[f"MLP, {how}"] = total("MLP", how, batch, length) / mlp
        words[f"attention, {how}"] = total("attention", how, batch, length) / attention
        lean[f"MLP, {how}"] = total("lean MLP", how, batch, length) / mlp
    for what in ("MLP", "attention"):
        one, two = 8 * width, 40 * width
        gaps = [total(what, "sequence", 1, each) - total(what, "tensor", 1, each) for each in (one, two)]
        crossing[what] = (one + (two - one) * gaps[0] / (gaps[0] - gaps[1])) / width
    return {"words": words, "words_lean": lean, "break_even": crossing}


def layer_numbers(crew: Crew) -> dict[str, float]:
    """Of a layer of BERT Base for one sequence: numbers kept as a / N + b of N ranks, and its weights, by tensor parallelism;
    the same by sequence parallelism."""
    shape = memory_model.BERT_BASE
    found = {}
    for size in (1, 2):
        for how in ("tensor", "sequence"):
            found[how, size] = crew.run(size, block_numbers, "layer", how, 1, shape.length, shape.width, shape.heads)[0]
    numbers: dict[str, float] = {}
    for how in ("tensor", "sequence"):
        for index, what in ((0, "weights"), (1, "kept")):
            one, two = found[how, 1][index], found[how, 2][index]
            numbers[f"{how}, {what}, shared"] = 2 * (one - two)
            numbers[f"{how}, {what}, whole"] = 2 * two - one
    return numbers


def sparse(config: Config, crew: Crew) -> dict[str, Value]:
    """Numbers kept of an attention when the length grows with the ranks, over those of one rank."""
    found = {size: max(crew.run(size, sparse_numbers, config.fault is Fault.dense)) for size in (1, 2, 4)}
    return {"sparse_saved": {f"{size} ranks": found[size] / found[1] for size in (2, 4)}}


def sparse_numbers(group: Group, dense: bool, chunk: int = 256, rows: int = 16) -> int:
    q, k, v = (torch.randn(2, 2, chunk, 16, device=group.device).requires_grad_() for _ in range(3))
    columns = [torch.randn(rows, chunk, device=group.device).requires_grad_() for _ in range(2)]
    if dense:
        return kept(lambda: ring_attention(q, k, v, Ring(group)))
    return kept(lambda: linformer_attention(q, k, v, *columns, group))


SHAPE = (1, 4, 64)
"""Batch, heads and features of a head where memory and time of attention are measured."""


def attentions(group: Group, gathered: bool = False, laps: int = 0) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Attention over chunks, by name."""
    all_gather = partial(gathered_attention, group=group)
    options: dict[str, Any] = {"check": False}
    return {
        "ring": all_gather if gathered else partial(ring_attention, ring=Ring(group, laps=laps, **options)),
        "ring, no overlap": partial(ring_attention, ring=Ring(group, overlap=False, **options)),
        "online ring": all_gather if gathered else partial(ring_attention_online, ring=Ring(group, **options)),
        "all-gather": all_gather,
        "fused all-gather": partial(all_gather, attend=fused_attention),
    }


def peak(config: Config, crew: Crew) -> dict[str, Value]:
    """High-water mark of the ring over that of gathering."""
    found = crew.run(2, peaks, config.peak_length, config.fault is Fault.gathered)[0]
    return {
        "peak": {
            "ring over all-gather": found["ring"] / found["all-gather"],
            "online ring over all-gather": found["online ring"] / found["all-gather"],
            "online ring over fused all-gather": found["online ring"] / found["fused all-gather"],
        }
    }


def peaks(group: Group, length: int, gathered: bool) -> dict[str, int]:
    """Bytes of live tensors at the most, forward and backward, by the kind of attention."""
    batch, heads, dim = SHAPE
    found = {}
    for name, attention in attentions(group, gathered).items():
        q, k, v = (torch.randn(batch, heads, length // group.size, dim, device=group.device).requires_grad_() for _ in range(3))
        with Allocations(q, k, v) as bytes_:
            attention(q, k, v).sum().backward()
        found[name] = bytes_.peak
    return found
