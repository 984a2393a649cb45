"""What a network costs, counted from its description as the authors count: multiply-adds, parameters, activations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from common.nas import ConvNet, Convolution, Count, InvertedResidual
from papers.fast_model_scaling.block import Bottleneck
from papers.fast_model_scaling.specs import Spec


class Complexity(NamedTuple):
    """Of one image; whole numbers, or arrays of real ones.

    Attributes:
        flops: multiply-adds of convolutions and linear layers, and one for each of their biases (the authors' code).
        parameters: trainable numbers, those of norms included.
        activations: numbers that convolutions, linear layers and max-pooling put out (the paper, section 3).
    """

    flops: Any
    parameters: Any
    activations: Any


def complexity(spec: Spec) -> Complexity:
    """The cost of a network at its resolution."""
    return Complexity(*map(sum, zip(*(cost for _, cost in breakdown(spec)), strict=True)))


def breakdown(spec: Spec) -> list[tuple[Any, Complexity]]:
    """Each layer with its cost; the classifier, as None, is the last."""
    net = spec.network()
    counts = net.counts(spec.resolution, spec.resolution)
    layers = [*net.layers, None]
    return [(layer, _with_biases(layer, count, net)) for layer, count in zip(layers, counts, strict=True)]


def _with_biases(layer: Any, count: Count, net: ConvNet) -> Complexity:
    shapes = {"bias": (net.classes,)} if layer is None else layer.shapes()
    biases = sum(math.prod(shape) for name, shape in shapes.items() if name.endswith("bias") and "norm." not in name)
    return Complexity(count.macs + biases, count.parameters, count.activations)


class Work(NamedTuple):
    """One operator that reads and writes memory: multiply-adds, numbers of its input, output and weights."""

    name: str
    macs: int
    read: int
    written: int
    weights: int


def operators(spec: Spec) -> list[Work]:
    """The operators of a forward pass of one image whose norms and activations are fused into the convolutions.

    A convolution reads its input and its weights once and writes its output once. A gate reads the map for its mean, and reads
    and writes it to multiply; the sum of a residual block reads x once more.
    """
    net: Any = spec.network()
    found = []
    for number, (layer, height, width) in enumerate(net.at(spec.resolution, spec.resolution)):
        name = f"layers.{number}"
        parts = [("", layer)] if not isinstance(layer, (InvertedResidual, Bottleneck)) else list(layer.parts())
        size = height, width
        for part, each in parts:
            if part in ("shortcut", "reduce"):
                size = height, width  # both see the block's input
            count = each.count(*size)
            weights = count.parameters if isinstance(each, Convolution) else 0
            found.append(Work(f"{name}.{part}", count.macs, each.inputs * math.prod(size), count.activations, weights))
            if part != "shortcut":
                size = math.ceil(size[0] / each.stride), math.ceil(size[1] / each.stride)
        if getattr(layer, "squeeze", 0):
            pixels, gate = layer.hidden * math.prod(size), 2 * layer.hidden * layer.squeeze
            found.append(Work(f"{name}.squeeze", gate, 2 * pixels, pixels, gate))
        if getattr(layer, "residual", isinstance(layer, Bottleneck)):
            found.append(Work(f"{name}.sum", 0, layer.outputs * math.prod(size), 0, 0))
    features = net.layers[-1].outputs
    found.append(Work("head", features * net.classes, features, net.classes, (features + 1) * net.classes))
    return found


def traffic(spec: Spec) -> int:
    """Activations that a forward pass of one image reads and writes, in numbers."""
    return sum(work.read + work.written for work in operators(spec))
