"""The closed-form latency in PyTorch, vectorised over models, positions and designs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from papers.pim_gpt import cost


def latency(shape: cost.Shape, position: Any, design: cost.Design) -> dict[str, Tensor]:
    """ns of a token by part and in all, float64; the fields of both arguments and the position are broadcast.

    Source: :mod:`papers.pim_gpt.cost`.
    """
    shape = cost.Shape(*(torch.as_tensor(value, dtype=torch.float64) for value in shape))
    design = cost.Design(*(torch.as_tensor(value, dtype=torch.float64) for value in design))
    return cost.latency(torch, shape, torch.as_tensor(position, dtype=torch.float64), design)


@functools.cache
def compiled_sweep() -> Callable[[cost.Shape, Tensor, cost.Design], Tensor]:
    """Total ns as one compiled loop over the designs, as JAX's jit makes it; every field is a float64 tensor."""
    return torch.compile(lambda shape, position, design: cost.latency(torch, shape, position, design)["total"])
