"""The networks in PyTorch; their twins are in :mod:`papers.fast_model_scaling.model_jax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.models.weights import to_torch
from common.nas import ConvNet, network_torch
from papers.fast_model_scaling.block import Bottleneck, MaxPool

Grouped = Callable[[Tensor, Tensor, int], Tensor]


class Network(nn.Module):
    """Images (batch, height, width, channel) to logits (batch, classes).

    Args:
        net: whose layers may be bottlenecks and max-pooling beside those of :mod:`common.nas`.
        seed: of :meth:`common.nas.ConvNet.initial_weights`; None leaves PyTorch's own, for the meta device.
        grouped: the mechanism of the bottlenecks' grouped convolutions, ``grouped(x, weight, stride)`` on x (batch, height,
            width, channel) and weight (3, 3, channels of a group, channel); None is the library's.
        options: dtype and device of weights and computation.
    """

    def __init__(self, net: ConvNet, seed: int | None = 0, grouped: Grouped | None = None, **options: Any) -> None:
        super().__init__()
        self.net = net
        self.layers = nn.ModuleList(build(layer, net.epsilon, grouped, **options) for layer in net.layers)
        self.head = nn.Linear(net.layers[-1].outputs, net.classes, **options)
        if seed is not None:
            to_torch(self, net.initial_weights(seed))

    def forward(self, images: Float[Tensor, "batch height width channel"]) -> Float[Tensor, "batch classes"]:
        x = rearrange(images, "batch height width channel -> batch channel height width")
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


def build(layer: Any, epsilon: float = 1e-5, grouped: Grouped | None = None, **options: Any) -> nn.Module:
    """A module of one layer, on (batch, channel, height, width)."""
    if isinstance(layer, Bottleneck):
        return Block(layer, epsilon, grouped, **options)
    if isinstance(layer, MaxPool):
        return nn.MaxPool2d(3, layer.stride, padding=1)
    return network_torch.build(layer, epsilon, **options)


class Block(nn.Module):
    """The :class:`papers.fast_model_scaling.block.Bottleneck`."""

    def __init__(self, layer: Bottleneck, epsilon: float, grouped: Grouped | None, **options: Any) -> None:
        super().__init__()
        parts = {name: network_torch.ConvNorm(part, epsilon, None, **options) for name, part in layer.parts()}
        self.shortcut = parts.get("shortcut")
        self.reduce = parts["reduce"]
        self.grouped = parts["grouped"]
        self.squeeze = network_torch.Squeeze(layer.gate(), **options) if layer.squeeze else None
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
