"""Two sources of the same z at every use: a counter, which needs no state, and PyTorch's generator, whose state is threaded.

Both have ``start(seed) -> state`` and two operations in place that take the state before a unit and return the state after
it, so that units may be visited one by one, as often as needed, in the order of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from papers.zo2.kernel import perturb
from papers.zo2.units import Parameter

Tensors = Sequence[tuple[Parameter, Tensor]]


@runtime_checkable
class Noise(Protocol):
    """theta += scale z, and theta -= rate (gradient z + decay theta)."""

    def start(self, seed: int) -> Any: ...
    def add(self, tensors: Tensors, scale: float, state: Any) -> Any: ...
    def update(self, tensors: Tensors, rate: float, gradient: float, decay: float, state: Any) -> Any: ...


class Counted:
    """z from :func:`papers.zo2.kernel.perturb`: the state is the seed, and z is never in memory."""

    def start(self, seed: int) -> int:
        return seed

    def add(self, tensors: Tensors, scale: float, state: int) -> int:
        for parameter, theta in tensors:
            perturb(theta, scale=scale, seed=state, parameter=parameter.index, out=theta)
        return state

    def update(self, tensors: Tensors, rate: float, gradient: float, decay: float, state: int) -> int:
        for parameter, theta in tensors:
            keep = 1.0 - rate * decay if parameter.decays else 1.0
            perturb(theta, scale=-rate * gradient, keep=keep, seed=state, parameter=parameter.index, out=theta)
        return state


class Threaded:
    """The authors' way: z drawn in the tensor's dtype from a generator whose state goes from unit to unit."""

    def __init__(self, device: str = "cpu") -> None:
        self.generator = torch.Generator(device)

    def start(self, seed: int) -> Tensor:
        return self.generator.manual_seed(seed).get_state()

    def add(self, tensors: Tensors, scale: float, state: Tensor) -> Tensor:
        self.generator.set_state(state)
        for _, theta in tensors:
            theta.add_(self._draw(theta), alpha=scale)
        return self.generator.get_state()

    def update(self, tensors: Tensors, rate: float, gradient: float, decay: float, state: Tensor) -> Tensor:
        self.generator.set_state(state)
        for parameter, theta in tensors:
            step = self._draw(theta).mul_(gradient)
            theta.sub_(step.add_(theta, alpha=decay) if parameter.decays else step, alpha=rate)
        return self.generator.get_state()

    def _draw(self, theta: Tensor) -> Tensor:
        return torch.empty_like(theta).normal_(generator=self.generator)
