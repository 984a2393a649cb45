"""Convolutional networks as data: layers, their shapes of weights, and what they cost in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

ACTIVATIONS = ("relu", "relu6", "silu", "none")
Shapes = dict[str, tuple[int, ...]]


class Count(NamedTuple):
    """What a pass of one image costs.

    Attributes:
        macs: multiply-adds of convolutions and linear layers; norms, activations, sums and means are not counted.
        parameters: trainable numbers, scales and shifts of norms included.
        activations: numbers that convolutions and linear layers put out (Dollar et al. 2021, arXiv 2103.06877, section 3).
    """

    macs: int = 0
    parameters: int = 0
    activations: int = 0

    def plus(self, other: Count) -> Count:
        return Count(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """activation(norm(convolution(x))), no bias, (kernel - 1) / 2 zeros around the image.

    Attributes:
        stride: the image shrinks to ceil(size / stride).
        groups: of channels that do not see each other; as many as inputs: depthwise.
        activation: "relu", "relu6", "silu" or "none".
    """

    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activation: str = "relu6"

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.kernel, self.stride, self.groups) < 1 or self.kernel % 2 == 0:
            raise ValueError(f"{self}: wanted positive whole numbers and an odd kernel")
        if self.inputs % self.groups or self.outputs % self.groups:
            raise ValueError(f"{self}: groups must divide inputs and outputs")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; wanted one of {', '.join(ACTIVATIONS)}")

    def count(self, height: int, width: int) -> Count:
        weights = self.outputs * (self.inputs // self.groups) * self.kernel**2
        pixels = math.ceil(height / self.stride) * math.ceil(width / self.stride)
        return Count(weights * pixels, weights + 2 * self.outputs, self.outputs * pixels)

    def shapes(self) -> Shapes:
        found: Shapes = {"convolution.weight": (self.outputs, self.inputs // self.groups, self.kernel, self.kernel)}
        return found | {f"norm.{part}": (self.outputs,) for part in ("weight", "bias", "running_mean", "running_var")}


@dataclass(frozen=True, kw_only=True)
class InvertedResidual:
    """x + project(squeeze(depthwise(expand(x)))), x only where the stride is 1 and the widths are equal.

    Source: Sandler et al. 2018 (MobileNetV2, arXiv 1801.04381), section 3.3; squeeze-and-excite: Tan and Le 2019
    (EfficientNet, arXiv 1905.11946); groups with shuffle: Wu et al. 2019 (FBNet, arXiv 1812.03443), section 3.1.

    Attributes:
        expand: channels of the depthwise convolution over inputs.
        groups: of the first 1 x 1 convolution, whose outputs are then shuffled; and of the last, if ``group_last``.
        squeeze: channels of the gate sigmoid(restore(activation(reduce(mean(x))))) before the projection; 0: no gate.
        always_expand: whether there is a first 1 x 1 convolution even where expand is 1.
    """

    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    expand: float | int = 6
    groups: int = 1
    group_first: bool = True
    group_last: bool = True
    squeeze: int = 0
    activation: str = "relu6"
    always_expand: bool = False

    def __post_init__(self) -> None:
        if self.squeeze < 0 or self.expand <= 0:
            raise ValueError(f"{self}: wanted a positive expand and a squeeze of 0 or more channels")
        for _ in self.parts():  # which refuse what they cannot be
            pass

    @property
    def hidden(self) -> int:
        return round(self.inputs * self.expand)

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs

    @property
    def expands(self) -> bool:
        return self.always_expand or self.hidden != self.inputs

    def parts(self) -> Iterator[tuple[str, Convolution]]:
        """Its convolutions, in order, with the names that they have in the built block."""
        first, last = (self.groups if grouped else 1 for grouped in (self.group_first, self.group_last))
        hidden, activation = self.hidden, self.activation
        if self.expands:
            yield "expand", Convolution(inputs=self.inputs, outputs=hidden, groups=first, activation=activation)
        yield (
            "depthwise",
            Convolution(
                inputs=hidden, outputs=hidden, kernel=self.kernel, stride=self.stride, groups=hidden, activation=activation
            ),
        )
        yield "project", Convolution(inputs=hidden, outputs=self.outputs, groups=last, activation="none")

    def count(self, height: int, width: int) -> Count:
        total = Count()
        for _, part in self.parts():
            total = total.plus(part.count(height, width))
            height, width = math.ceil(height / part.stride), math.ceil(width / part.stride)
        return total.plus(gate_count(self.hidden, self.squeeze))

    def shapes(self) -> Shapes:
        found = {f"{name}.{rest}": shape for name, part in self.parts() for rest, shape in part.shapes().items()}
        return found | gate_shapes(self.hidden, self.squeeze)


def gate_count(hidden: int, squeeze: int) -> Count:
    """Of sigmoid(restore(activation(reduce(mean(x))))) with ``squeeze`` of ``hidden`` channels in between; nothing for 0."""
    weights = 2 * hidden * squeeze
    return Count(weights, weights + hidden + squeeze, hidden + squeeze) if squeeze else Count()


def gate_shapes(hidden: int, squeeze: int) -> Shapes:
    if not squeeze:
        return {}
    found: Shapes = {"squeeze.reduce.weight": (squeeze, hidden), "squeeze.reduce.bias": (squeeze,)}
    return found | {"squeeze.restore.weight": (hidden, squeeze), "squeeze.restore.bias": (hidden,)}


Layer = Convolution | InvertedResidual


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """Layers one after the other, the mean over the image, a linear classifier with bias.

    Attributes:
        layers: each takes as many channels as the one before puts out.
        epsilon: added to the variance in every norm.
    """

    layers: tuple[Layer, ...]
    classes: int
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if not self.layers or self.classes < 1:
            raise ValueError(f"{len(self.layers)} layers and {self.classes} classes; wanted at least one of each")
        for place, (one, other) in enumerate(zip(self.layers, self.layers[1:], strict=False), 1):
            if one.outputs != other.inputs:
                raise ValueError(f"layer {place} takes {other.inputs} channels, but the one before it puts out {one.outputs}")

    def at(self, height: int, width: int) -> Iterator[tuple[Layer, int, int]]:
        """Each layer with the size of the image that comes into it."""
        for layer in self.layers:
            yield layer, height, width
            height, width = math.ceil(height / layer.stride), math.ceil(width / layer.stride)

    def counts(self, height: int, width: int) -> list[Count]:
        """Of each layer, and of the classifier as the last."""
        features = self.layers[-1].outputs
        head = Count(features * self.classes, (features + 1) * self.classes, self.classes)
        return [*(layer.count(*size) for layer, *size in self.at(height, width)), head]

    def count(self, height: int, width: int) -> Count:
        total = Count()
        for each in self.counts(height, width):
            total = total.plus(each)
        return total

    def shapes(self) -> Shapes:
        """Shape of every weight of the built model, by name; running statistics included."""
        found = {f"layers.{i}.{name}": shape for i, layer in enumerate(self.layers) for name, shape in layer.shapes().items()}
        features = self.layers[-1].outputs
        return found | {"head.weight": (self.classes, features), "head.bias": (self.classes,)}

    def initial_weights(self, seed: int) -> dict[str, np.ndarray]:
        """Float64 weights for a new model, the same in both frameworks.

        Convolutions are normal with deviation sqrt(2 / fan-out) (He et al. 2015), linear layers normal with deviation 0.01;
        scales and running variances are 1, shifts, biases and running means 0.
        """
        rng = np.random.default_rng(seed)

        def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if len(shape) == 1:
                return np.zeros(shape) if name.endswith((".bias", ".running_mean")) else np.ones(shape)
            # Each input of a convolution reaches outputs / groups numbers; a depthwise one has as many groups as outputs.
            fan_out = math.prod(shape[2:]) * (shape[0] if shape[1] > 1 else 1)
            return rng.normal(0.0, math.sqrt(2 / fan_out) if len(shape) == 4 else 0.01, shape)

        return {name: draw(name, shape) for name, shape in self.shapes().items()}


def divisible(channels: float | int, by: int = 8) -> int:
    """The multiple of ``by`` nearest to ``channels``, but not less than 0.9 of it (Howard et al. 2017, MobileNets)."""
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest if nearest >= 0.9 * channels else nearest + by


def mobilenet_v2(width: float | int = 1.0, classes: int = 1000) -> ConvNet:
    """The network of Sandler et al. 2018 (arXiv 1801.04381), table 2, at a width multiplier."""
    inputs = divisible(32 * width)
    layers: list[Layer] = [Convolution(inputs=3, outputs=inputs, kernel=3, stride=2)]
    for expand, outputs, repeats, stride in _MOBILENET_V2:
        block = InvertedResidual(inputs=inputs, outputs=divisible(outputs * width), stride=stride, expand=expand)
        for _ in range(repeats):
            layers.append(block)
            block = replace(block, inputs=block.outputs, stride=1)
        inputs = block.outputs
    # The last convolution is not made narrower than 1280.
    return ConvNet(layers=(*layers, Convolution(inputs=inputs, outputs=divisible(1280 * max(1.0, width)))), classes=classes)


_MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repetitions and stride of the first, for each stage."""
