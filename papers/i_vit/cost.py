"""What follows from shapes: bytes of an exported network, and a roofline of its time on a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from common.architecture import VisionTransformer
from common.hardware import Device, roofline
from common.models.weights import shapes

FACTOR = 5
"""Bytes of one m and e."""


def deit(name: str) -> VisionTransformer:
    """DeiT-T, S or B at 224 x 224."""
    width, heads = {"T": (192, 3), "S": (384, 6), "B": (768, 12)}[name]
    return VisionTransformer(image=224, patch=16, classes=1000, width=width, depth=12, heads=heads, hidden=4 * width)


def exported_bytes(architecture: VisionTransformer) -> int:
    """Bytes of the arrays of an exported network: 8-bit weights, 32-bit shifts, 16-bit positions, and all factors.

    Products are rescaled with a factor for each channel where weights have a scale for each, norms likewise.
    """
    total = 0
    for name, shape in shapes(architecture).items():
        if name == "class_token":
            continue  # part of the positions
        if name == "positions":
            total += 2 * math.prod(shape)
        elif len(shape) == 2:
            total += math.prod(shape) + (0 if name.startswith("head") else FACTOR * shape[0])
        elif name.endswith("norm.weight"):
            total += FACTOR * shape[0]
        else:
            total += 4 * shape[0]
    # One factor each: scores, mixed and gelu, two at both sums of a block, two at the embedding.
    return total + FACTOR * (architecture.depth * 7 + 2)


def float_bytes(architecture: VisionTransformer) -> int:
    return 4 * sum(math.prod(shape) for shape in shapes(architecture).values())


def layers(a: VisionTransformer, batch: int, integer: bool) -> list[tuple[str, float, float]]:
    """(name, multiply-adds, bytes) of every kernel of a forward pass.

    What is assumed: element-wise work that follows a product (bias, rescaling) is fused into it, so products write codes of 8 or
    16 bits; norms, softmax, GELU and residual sums are kernels of their own, in both forms, that read and write their arrays in
    full; weights are read once in each pass. Residual codes have 16 bits, attention weights 8, as in the paper's TVM code.
    """
    byte, double = (1, 2) if integer else (4, 4)
    rows, c, h, n, d = batch * a.tokens, a.width, a.hidden, a.tokens, a.width // a.heads
    found: list[tuple[str, float, float]] = []

    def linear(name: str, inputs: int, outputs: int, out: int, tokens: int = rows) -> None:
        size = tokens * inputs * byte + inputs * outputs * byte + tokens * outputs * out
        found.append((name, float(tokens * inputs * outputs), float(size)))

    def elementwise(name: str, size: int) -> None:
        found.append((name, 0.0, float(size)))

    linear("patches", a.patch**2 * a.channels, c, double, batch * (a.tokens - 1))
    elementwise("embedding", 2 * rows * c * double + n * c * double)
    heads = batch * a.heads
    for _ in range(a.depth):
        elementwise("norm", rows * c * (double + byte))
        for part in ("query", "key", "value"):
            linear(part, c, c, byte)
        found.append(("scores", float(heads * n * n * d), float(heads * (2 * n * d + n * n) * byte)))
        elementwise("softmax", 2 * heads * n * n * byte)
        found.append(("mixed", float(heads * n * n * d), float(heads * (2 * n * d + n * n) * byte)))
        linear("output", c, c, double)
        elementwise("sum", 3 * rows * c * double)
        elementwise("norm", rows * c * (double + byte))
        linear("up", c, h, byte)
        elementwise("gelu", 2 * rows * h * byte)
        linear("down", h, c, double)
        elementwise("sum", 3 * rows * c * double)
    elementwise("norm", batch * c * (double + byte))
    linear("head", c, a.classes, 4, batch)
    return found


def seconds(a: VisionTransformer, device: Device, batch: int, arithmetic: str, integer: bool) -> dict[str, float]:
    """Seconds by kind of kernel under the roofline; no launch costs, full rates."""
    total: dict[str, float] = {}
    for name, macs, size in layers(a, batch, integer):
        total[name] = total.get(name, 0.0) + float(roofline(device, 2 * macs, size, arithmetic))
    return total


def speedups(device: Device, batch: int, arithmetic: str = "int8_dp4a") -> dict[str, float]:
    """Time in float32 over time in integers, for DeiT-T, S and B."""
    found: dict[str, Any] = {}
    for name in ("T", "S", "B"):
        times = [
            sum(seconds(deit(name), device, batch, kind, whole).values()) for kind, whole in (("fp32", False), (arithmetic, True))
        ]
        found[name] = float(np.divide(*times))
    return found
