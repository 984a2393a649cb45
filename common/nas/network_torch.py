"""The :class:`common.nas.ConvNet` in PyTorch; its twin is :mod:`common.nas.network_jax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.models.weights import to_torch
from common.nas.network import ConvNet, Convolution, InvertedResidual, Layer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "none": lambda x: x}

Mechanism = Callable[[Tensor, Tensor, int], Tensor]


def build(layer: Layer, epsilon: float = 1e-5, depthwise: Mechanism | None = None, **options: Any) -> nn.Module:
    """A module of one layer, on (batch, channel, height, width)."""
    if isinstance(layer, Convolution):
        return ConvNorm(layer, epsilon, depthwise, **options)
    return Inverted(layer, epsilon, depthwise, **options)


class Network(nn.Module):
    """Images (batch, height, width, channel) to logits (batch, classes).

    Args:
        seed: of :meth:`common.nas.ConvNet.initial_weights`; None leaves PyTorch's own, for the meta device.
        depthwise: the mechanism of depthwise convolutions, ``depthwise(x, weight, stride)`` on x (batch, height, width,
            channel) and weight (kernel, kernel, channel); None is the library's.
        options: dtype and device of weights and computation.

    A subclass whose layers are of other kinds too has a ``build`` of its own.
    """

    build = staticmethod(build)

    def __init__(self, net: ConvNet, seed: int | None = 0, depthwise: Mechanism | None = None, **options: Any) -> None:
        super().__init__()
        self.net = net
        self.layers = nn.ModuleList(self.build(layer, net.epsilon, depthwise, **options) for layer in net.layers)
        self.head = nn.Linear(net.layers[-1].outputs, net.classes, **options)
        if seed is not None:
            to_torch(self, net.initial_weights(seed))

    def forward(self, images: Float[Tensor, "batch height width channel"]) -> Float[Tensor, "batch classes"]:
        x = rearrange(images, "batch height width channel -> batch channel height width")
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


class ConvNorm(nn.Module):
    """activation(norm(convolution(x)))."""

    def __init__(self, layer: Convolution, epsilon: float, depthwise: Mechanism | None, **options: Any) -> None:
        super().__init__()
        a = self.layer = layer
        self.convolution = nn.Conv2d(
            a.inputs, a.outputs, a.kernel, a.stride, a.kernel // 2, groups=a.groups, bias=False, **options
        )
        self.norm = nn.BatchNorm2d(a.outputs, eps=epsilon, **options)
        self.activation = ACTIVATIONS[a.activation]
        self.mechanism = depthwise if a.groups == a.inputs == a.outputs else None

    def forward(self, x: Tensor) -> Tensor:
        if self.mechanism is None:
            y = self.convolution(x)
        else:
            weight = rearrange(self.convolution.weight, "channel one row column -> row column (channel one)")
            y = self.mechanism(x.permute(0, 2, 3, 1), weight, self.layer.stride).permute(0, 3, 1, 2)
        return self.activation(self.norm(y))


class Inverted(nn.Module):
    """The :class:`common.nas.InvertedResidual`."""

    def __init__(self, layer: InvertedResidual, epsilon: float, depthwise: Mechanism | None, **options: Any) -> None:
        super().__init__()
        self.layer = layer
        parts = {name: ConvNorm(part, epsilon, depthwise, **options) for name, part in layer.parts()}
        self.expand = parts.get("expand")
        self.depthwise = parts["depthwise"]
        self.squeeze = Squeeze(layer.hidden, layer.squeeze, layer.activation, **options) if layer.squeeze else None
        self.project = parts["project"]

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None:
            y = self.expand(y)
            if self.layer.groups > 1 and self.layer.group_first:
                y = rearrange(y, "batch (group each) height width -> batch (each group) height width", group=self.layer.groups)
        y = self.depthwise(y)
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project(y)
        return x + y if self.layer.residual else y


class Squeeze(nn.Module):
    """x sigmoid(restore(activation(reduce(mean(x)))))."""

    def __init__(self, hidden: int, squeeze: int, activation: str, **options: Any) -> None:
        super().__init__()
        self.reduce = nn.Linear(hidden, squeeze, **options)
        self.restore = nn.Linear(squeeze, hidden, **options)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.restore(self.activation(self.reduce(x.mean((2, 3))))))[:, :, None, None]
