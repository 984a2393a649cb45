"""The closed form over many configurations at once in PyTorch, float64."""

from __future__ import annotations

import torch

from papers.megatron_lm import cost
from papers.megatron_lm.shape import Shape


def predict(shape: Shape, batch: int, plan: cost.Plan, machine: cost.Machine, scatter: bool = True) -> cost.Cost:
    """As :func:`papers.megatron_lm.cost.predict`; the fields of the plan are broadcast."""
    arrays = cost.Plan(*(torch.as_tensor(each, dtype=torch.float64) for each in plan))
    return cost.predict(_Torch, shape, batch, arrays, machine, scatter)


class _Torch:
    @staticmethod
    def where(condition: torch.Tensor, yes: torch.Tensor | float, no: torch.Tensor | float) -> torch.Tensor:
        return torch.where(condition, torch.as_tensor(yes, dtype=torch.float64), torch.as_tensor(no, dtype=torch.float64))
