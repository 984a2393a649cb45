"""The paper's way of counting operations, and what a roofline makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from common.hardware import Device
from papers.gpusq_vit.shapes import Shapes

CHEAPER = {"int8": 16, "int4": 32}
"""How many operations of this format count as one of float32. The paper does not spell its rule out; with these whole numbers,
and 2 for the sparsity of products with weights, the rule gives its table for DeiT-B."""


@dataclass(frozen=True)
class Effective:
    """Operations of one image in units of float32: of products with weights, and of those without."""

    weights: float
    attention: float

    @property
    def total(self) -> float:
        return self.weights + self.attention


def effective(shapes: Shapes, kind: str, sparse: bool = True) -> Effective:
    """Multiply-adds of one image; weights count half when two of four are zero, Q K^T and A V have none."""
    cheaper = CHEAPER.get(kind, 1)
    weights = sum(each.macs for each in shapes.matrices)
    return Effective(weights / cheaper / (2 if sparse and kind in CHEAPER else 1), shapes.attention / cheaper)


def ratio(shapes: Shapes, kind: str, sparse: bool = True) -> float:
    """How many times fewer operations than in float32."""
    return effective(shapes, "float32").total / effective(shapes, kind, sparse).total


def seconds(shapes: Shapes, kind: str, batch: int, device: Device, memory: bool = True) -> float:
    """Time of one batch when each product runs at the device's peak or at its bandwidth, whichever is slower.

    Nothing is fused: each product reads its weights (5 or 2.5 bits each when pruned) and its input and writes its output,
    in 4 bytes, or in 2 where what is between the products stays in float16, as do Q K^T and A V. Launches cost nothing.

    Args:
        kind: "fp32" (on CUDA cores), "tf32" (what compilers make of float32 on an A100), "int8" or "int4", both sparse.
        memory: False: reading and writing cost nothing.
    """
    floating = kind in ("fp32", "tf32")
    width, stored = (4, 4.0) if floating else (2, {"int8": 5 / 8, "int4": 2.5 / 8}[kind])
    peak = device.peak(kind, sparse=not floating)
    rate = device.bandwidth if memory else float("inf")
    total = 0.0
    for each in shapes.matrices:
        moved = each.rows * each.k * stored + batch * each.tokens * (each.rows + each.k) * width
        total += max(2 * batch * each.macs / peak, moved / rate)
    products = sum(each.tokens * (each.rows + each.k) for each in shapes.matrices[1:-1])
    rest = batch * max(0, shapes.traffic - products) * width / rate
    return total + rest + 2 * batch * shapes.attention / device.peak(kind if floating else "fp16")
