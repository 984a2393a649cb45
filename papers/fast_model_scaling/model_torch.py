"""The networks in PyTorch; their twins are in :mod:`papers.fast_model_scaling.model_jax`."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from common.nas import ConvNet, network_torch
from common.nas.network_torch import Mechanism
from papers.fast_model_scaling.block import Bottleneck, MaxPool


def build(layer: Any, epsilon: float = 1e-5, grouped: Mechanism | None = None, **options: Any) -> nn.Module:
    """A module of one layer, on (batch, channel, height, width)."""
    if isinstance(layer, Bottleneck):
        return Block(layer, epsilon, grouped, **options)
    if isinstance(layer, MaxPool):
        return nn.MaxPool2d(3, layer.stride, padding=1)
    return network_torch.build(layer, epsilon, **options)


class Network(network_torch.Network):
    """:class:`common.nas.network_torch.Network` whose layers may be bottlenecks and max-pooling too.

    Args:
        grouped: the mechanism of the bottlenecks' grouped convolutions, ``grouped(x, weight, stride)`` on x (batch, height,
            width, channel) and weight (3, 3, channels of a group, channel); None is the library's.
    """

    build = staticmethod(build)

    def __init__(self, net: ConvNet, seed: int | None = 0, grouped: Mechanism | None = None, **options: Any) -> None:
        super().__init__(net, seed, grouped, **options)


class Block(nn.Module):
    """The :class:`papers.fast_model_scaling.block.Bottleneck`."""

    def __init__(self, layer: Bottleneck, epsilon: float, grouped: Mechanism | None, **options: Any) -> None:
        super().__init__()
        parts = {name: network_torch.ConvNorm(part, epsilon, None, **options) for name, part in layer.parts()}
        self.shortcut = parts.get("shortcut")
        self.reduce = parts["reduce"]
        self.grouped = parts["grouped"]
        gate = (layer.hidden, layer.squeeze, layer.activation)
        self.squeeze = network_torch.Squeeze(*gate, **options) if layer.squeeze else None
        self.restore = parts["restore"]
        self.activation = network_torch.ACTIVATIONS[layer.activation]
        self.mechanism = grouped

    def forward(self, x: Tensor) -> Tensor:
        y = self._grouped(self.reduce(x))
        if self.squeeze is not None:
            y = self.squeeze(y)
        return self.activation(self.restore(y) + (x if self.shortcut is None else self.shortcut(x)))

    def _grouped(self, x: Tensor) -> Tensor:
        part = self.grouped
        if self.mechanism is None:
            return part(x)
        weight = rearrange(part.convolution.weight, "outputs each row column -> row column each outputs")
        y = self.mechanism(x.permute(0, 2, 3, 1), weight, part.layer.stride).permute(0, 3, 1, 2)
        return part.activation(part.norm(y))
