"""The profile in PyTorch: all GPUs, sizes, objectives and constants at once, by broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from common.serving import saturated
from papers.melange.profile import Chip, Constants, Load


def max_rate(
    chip: Chip, constants: Constants, load: Load, prompt: Any, output: Any, objective: Any, *, most: int, stalls: bool = True
) -> Float[Tensor, "*cells"]:
    """The highest rate within the objective; see :mod:`papers.melange.profile`.

    Args:
        prompt, output: tokens; objective: seconds between tokens; all of them, and the fields of chip and constants, are numbers
            or arrays that broadcast.
        most: sequences that may run at once.
        stalls: whether a prefill holds the others up.

    Returns:
        Requests a second, float64; 0 where not even one sequence fits or keeps the objective.
    """
    peak, bandwidth, room, reach, compute, step, sequence, occupancy, prompt, output, objective = torch.broadcast_tensors(
        *(torch.as_tensor(each, dtype=torch.float64) for each in (*chip, *constants, prompt, output, objective))
    )
    peak, bandwidth = compute * peak, reach * bandwidth
    tokens = (prompt + output) * load.cache

    def decode(batch: Tensor) -> Tensor:
        weights = torch.maximum(load.weights / bandwidth, 2 * load.parameters * batch / peak)
        return weights + batch * (prompt + output / 2) * load.cache / bandwidth + step + sequence * batch

    def run(batch: Tensor) -> tuple[Tensor, Tensor]:
        return saturated(batch, output, decode(batch), 2 * load.parameters * prompt / peak * stalls)

    def allowed(batch: Tensor) -> Tensor:
        return (run(batch)[1] <= objective) & (batch * occupancy * tokens <= room) & (tokens <= room)

    # low is allowed (or 0), high is not (or one too many): both close in on the largest batch that is.
    low, high = torch.zeros_like(tokens), torch.full_like(tokens, most + 1)
    for _ in range(most.bit_length()):
        middle = torch.floor((low + high) / 2)
        good = allowed(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(low > 0, run(low.clamp(min=1))[0], 0.0)
