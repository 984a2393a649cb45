"""What GaLore is held against: W = B A, LoRA and ReLoRA, put into a model in place of its linear layers (PyTorch)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from papers.galore.memory import projected


def swap(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Replace the linear layers that GaLore would project, those of attention and feed-forward; returns the model."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and projected(f"{name}.weight", tuple(layer.weight.shape)):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, make(layer))
    return model


class LowRank(nn.Module):
    """y = B A x: the weight itself has rank r. A (r x inputs), B (outputs x r), drawn so that B A varies as the weight did."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        deviation = math.sqrt(layer.weight.std().item() / math.sqrt(rank))
        self.a = nn.Parameter(deviation * torch.randn(rank, inputs, generator=generator))
        self.b = nn.Parameter(deviation * torch.randn(outputs, rank, generator=generator))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return F.linear(F.linear(x, self.a), self.b, self.bias)


class Lora(nn.Module):
    """y = W x + scale B A x with W fixed, B = 0 and A uniform at first (Hu et al. 2021; A as nn.Linear draws it)."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.scale, self.generator = scale, generator
        self.a, self.b = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.empty(outputs, rank))
        self._restart()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.a), self.b)

    @torch.no_grad()
    def merge(self) -> None:
        """Take the product into W and begin a new one: what ReLoRA (Lialin et al. 2023) does every so many steps."""
        self.weight.addmm_(self.b, self.a, alpha=self.scale)
        self._restart()

    @torch.no_grad()
    def _restart(self) -> None:
        bound = 1 / math.sqrt(self.a.shape[1])
        # Drawn on the CPU, where the generator is, for a model on any device.
        self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=self.generator))
        self.b.zero_()


def merge_all(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One restart of ReLoRA: every product goes into its weight, and its moments are forgotten."""
    for layer in model.modules():
        if isinstance(layer, Lora):
            layer.merge()
            for each in (layer.a, layer.b):
                optimizer.state.pop(each, None)
