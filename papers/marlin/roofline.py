"""Time of y = x W by arithmetic and by memory traffic, for each way of storing W. One text for NumPy, PyTorch and JAX.

time = max(2 m k n / peak, (k n bits / 8 + 2 (m k + m n)) / bandwidth). There is no constant to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.hardware import Device, roofline

BITS = {"fp16": 16.0, "int4": 4 + 16 / 128, "sparse": 4 / 2 + 1 + 16 / 128}
"""Bits of a weight: the number, two bits of place for each of two in four, a float16 scale for 128."""


def seconds(device: Device, m: Any, k: int, n: int, kind: str = "int4", bits: float | None = None) -> Any:
    """Seconds of one product; m is a number or an array of any framework. ``bits`` takes the place of the kind's own."""
    # Floats: JAX takes no whole number that outgrows 32 bits.
    size = float(k) * n * (BITS[kind] if bits is None else bits) / 8 + 2.0 * m * (k + n)
    return roofline(device, 2.0 * m * float(k) * n, size, "fp16", sparse=kind == "sparse")


def speedup(device: Device, m: Any, layers: Sequence[tuple[int, int]], kind: str = "int4", bits: float | None = None) -> Any:
    """Time with dense float16 over time with ``kind``, over all the layers (k, n) together."""
    dense = sum(seconds(device, m, k, n, "fp16") for k, n in layers)
    return dense / sum(seconds(device, m, k, n, kind, bits) for k, n in layers)


def critical(device: Device, kind: str = "int4") -> float:
    """Multiply-adds of each weight from which arithmetic takes longer than reading it: peak / bandwidth / 2 x bytes."""
    return device.ridge("fp16") / 2 * BITS[kind] / 8
