"""The layers that only ResNets and RegNets have, as data beside those of :mod:`common.nas`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.nas import ConvNet, Convolution, Count
from common.nas.network import Shapes, gate_count, gate_shapes


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """relu(shortcut(x) + restore(squeeze(grouped(reduce(x))))): 1 x 1, 3 x 3 in groups, 1 x 1.

    The shortcut is x itself where the stride is 1 and the widths are equal, else a 1 x 1 convolution.

    Source: He et al. 2016 (ResNet, arXiv 1512.03385), figure 5; groups: Xie et al. 2017 (ResNeXt, arXiv 1611.05431); the gate
    before the last convolution: Radosavovic et al. 2020 (RegNetY, arXiv 2003.13678), section 4.

    Attributes:
        hidden: channels of the 3 x 3 convolution.
        groups: of the 3 x 3 convolution.
        squeeze: channels of the gate sigmoid(restore(activation(reduce(mean(x))))); 0: no gate.
    """

    inputs: int
    outputs: int
    hidden: int
    groups: int = 1
    stride: int = 1
    squeeze: int = 0
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.squeeze < 0:
            raise ValueError(f"{self}: wanted a squeeze of 0 or more channels")
        for _ in self.parts():  # which refuse what they cannot be
            pass

    def parts(self) -> Iterator[tuple[str, Convolution]]:
        """Its convolutions with the names that they have in the built block; all but the second and third see x."""
        act, hidden, stride = self.activation, self.hidden, self.stride
        if stride != 1 or self.inputs != self.outputs:
            yield "shortcut", Convolution(inputs=self.inputs, outputs=self.outputs, stride=stride, activation="none")
        yield "reduce", Convolution(inputs=self.inputs, outputs=hidden, activation=act)
        yield (
            "grouped",
            Convolution(inputs=hidden, outputs=hidden, kernel=3, stride=stride, groups=self.groups, activation=act),
        )
        yield "restore", Convolution(inputs=hidden, outputs=self.outputs, activation="none")

    def count(self, height: int, width: int) -> Count:
        out = math.ceil(height / self.stride), math.ceil(width / self.stride)
        total = Count()
        for name, part in self.parts():
            total = total.plus(part.count(*(out if name == "restore" else (height, width))))
        return total.plus(gate_count(self.hidden, self.squeeze))

    def shapes(self) -> Shapes:
        found = {f"{name}.{rest}": shape for name, part in self.parts() for rest, shape in part.shapes().items()}
        return found | gate_shapes(self.hidden, self.squeeze)


@dataclass(frozen=True, kw_only=True)
class MaxPool:
    """The largest of every 3 x 3 pixels, each second one; its outputs count as activations, as in the authors' code."""

    inputs: int
    stride: int = 2

    @property
    def outputs(self) -> int:
        return self.inputs

    def count(self, height: int, width: int) -> Count:
        return Count(0, 0, self.inputs * math.ceil(height / self.stride) * math.ceil(width / self.stride))

    def shapes(self) -> Shapes:
        return {}


@dataclass(frozen=True, kw_only=True)
class Chain(ConvNet):
    """A :class:`common.nas.ConvNet` whose layers may be of the kinds above too."""

    layers: tuple[Any, ...]
