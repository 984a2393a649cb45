"""Time of masking, packing and of a packed layer on this CPU, against what one would write or take instead."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from common.meter import median_seconds
from kernels import sparse24
from papers.gpusq_vit import compress

ROWS, K = 3072, 768
"""The first feed-forward matrix of DeiT-B."""


def measured(seed: int, repeats: int) -> dict[str, float]:
    """Seconds of each."""
    weights = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(seed))
    x = torch.randn(1, K, generator=torch.Generator().manual_seed(seed + 1))
    mask = sparse24.mask(weights)
    packed = [compress.pack_layer(weights, sparse24.mask(weights, paired=bits == 4), bits) for bits in (8, 4)]
    stored = [(torch.from_numpy(each.values), torch.from_numpy(each.meta), torch.ones(ROWS)) for each in packed]
    functions: dict[str, Any] = {
        "mask": lambda: sparse24.mask(weights),
        "mask by topk": lambda: by_topk(weights),
        "pack": lambda: sparse24.pack(weights, mask),
        "dense": lambda: F.linear(x, weights),
        "packed int8": lambda: sparse24.matmul(x, *stored[0]),
        "packed int4": lambda: sparse24.matmul(x, *stored[1], paired=True),
    }
    return median_seconds(functions, repeats=repeats, least=0.02)


def bytes_read() -> dict[str, float]:
    """Bytes of weights that a product reads, over those of float32."""
    weights = torch.randn(ROWS, K)
    found = {}
    for kind, bits in (("int8", 8), ("int4", 4)):
        mask = compress.layer_mask(kind, weights, bits)
        assert mask is not None
        found[kind] = compress.pack_layer(weights, mask, bits).nbytes / (4 * ROWS * K)
    return found


def by_topk(weights: torch.Tensor) -> torch.Tensor:
    """The mask as one writes it with torch.topk."""
    groups = weights.abs().view(-1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(1, groups.topk(2, dim=1).indices, True).view_as(weights)
