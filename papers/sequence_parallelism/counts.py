"""Bytes that are sent, by the ranks' own counters, as multiples of what the paper's formulas are written in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.distributed import Group
from papers.sequence_parallelism.config import Config
from papers.sequence_parallelism.encoder import Place, Shape
from papers.sequence_parallelism.exact import _batches
from papers.sequence_parallelism.model_torch import Block
from papers.sequence_parallelism.online_torch import ring_attention_online
from papers.sequence_parallelism.parallel import Job, train
from papers.sequence_parallelism.ring_torch import Ring, ring_attention

if TYPE_CHECKING:  # every rank imports this module
    from common.distributed import Crew
    from common.ledger import Value

BATCH, HEADS, CHUNK, DIM = 2, 4, 6, 8


def sent(config: Config, crew: Crew) -> dict[str, Value]:
    """Numbers sent by a rank for each layer and step, over (N - 1) B Z C A."""
    size = config.ranks
    plain, scatter, online = (crew.run(size, ring_sent, kind)[0] for kind in ("all", "scatter", "online"))
    tensor = crew.run(size, tensor_sent)[0]
    comm = {
        "ring, forward": plain[0],
        "ring, both": sum(plain),
        "ring with reduce-scatter, both": sum(scatter),
        "tensor, attention": tensor["attention"],
        "tensor, layer": tensor["layer"],
    }
    return {
        "comm": comm,
        "online_comm": {
            "forward": online[0] * (size - 1) / (2 * (size - 1)) - 1,
            "both": sum(online) * (size - 1) / (2 * (size - 1) + 4 * size - 2) - 1,
        },
    }


def ring_sent(group: Group, kind: str) -> tuple[float, float]:
    """Forward and backward of one attention."""
    q, k, v = (torch.randn(BATCH, HEADS, CHUNK, DIM, device=group.device).requires_grad_() for _ in range(3))
    unit = (group.size - 1) * q.numel() * q.element_size()
    online = kind == "online"
    out = ring_attention_online(q, k, v, Ring(group)) if online else ring_attention(q, k, v, Ring(group, reduce=kind))
    forward = group.traffic.bytes()
    out.sum().backward()
    return forward / unit, (group.traffic.bytes() - forward) / unit


def tensor_sent(group: Group) -> dict[str, float]:
    """A layer by tensor parallelism, forward and backward, and its attention alone."""
    shape = Shape(HEADS * DIM, 1, HEADS, CHUNK * group.size)
    place = Place(tensor=(group.rank, group.size))
    block = Block(shape, lambda q, k, v, mask: q + k + v, place, group, None, torch.float32).to(group.device)
    x = torch.randn(BATCH, CHUNK * group.size, shape.width, device=group.device)
    unit = (group.size - 1) * x.numel() / group.size * x.element_size()
    found = {}
    for name, part in (("attention", block.attention), ("layer", lambda x: block(x, None))):
        before = group.traffic.bytes()
        part(x.clone().requires_grad_()).sum().backward()
        found[name] = (group.traffic.bytes() - before) / unit
    return found


def border(config: Config, crew: Crew) -> dict[str, Value]:
    """Numbers that the first rank of the first stage sends to the next stage, and gathers, each way, over B C H."""
    batch, length, width, two = 4, 24, 32, 2
    job = Job(Shape(width, 2, 4, length), _batches(config, batch, length, 1), seed=config.seed)
    unit = batch * length // two * width * torch.float64.itemsize

    def counts(**change: Any) -> dict[tuple[str, str], float]:
        each = replace(job, **change)
        traffic = crew.run(each.ranks, train, each)[0].traffic
        return {key: size / unit for key, size in traffic.items()}

    sequence = counts(axes={"pipe": two, "sequence": two})
    whole, split = (counts(axes={"pipe": two, "tensor": two}, split=each) for each in (False, True))
    return {
        "border": {
            "sequence, sent": sequence["pipe", "exchange"],
            "sequence, gathered": sum(size for (_, kind), size in sequence.items() if kind == "all_gather"),
            "tensor whole, sent": whole["pipe", "exchange"],
            "tensor split, sent": split["pipe", "exchange"],
            "tensor split, gathered": split["tensor", "all_gather"],
        }
    }


def balance(crew: Crew) -> dict[str, Value]:
    """Blocks of the busiest of four ranks over the mean, under a causal mask."""
    blocks = np.array(crew.run(4, causal_blocks))
    return {"balance": float(blocks.max() / blocks.mean())}


def causal_blocks(group: Group) -> int:
    q, k, v = torch.randn(3, BATCH, HEADS, CHUNK, DIM, device=group.device)
    ring = Ring(group)
    ring_attention_online(q, k, v, ring, causal=True)
    return ring.blocks
