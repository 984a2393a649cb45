"""The roofline: the time of work on a device is that of its arithmetic or of its memory traffic, whichever is longer."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, is_array_api_obj

from .devices import Device


def roofline(
    device: Device, operations: Any, size: Any, dtype: str, *, sparse: bool = False, compute: float = 1.0, traffic: float = 1.0
) -> Any:
    """max(operations / (peak compute), bytes / (bandwidth traffic)) in seconds.

    Args:
        operations: arithmetic operations, a multiply-add counting two; a number or an array of any framework.
        size: bytes that cross between the chip and its memory; likewise.
        dtype: the number format of the arithmetic, which the device must have units for.
        sparse: with 2:4 structured sparsity; ``operations`` then still count the dense product.
        compute: the share of the peak that is reached; 1 is the device's own limit.
        traffic: the share of the bandwidth that is reached.

    Raises:
        ValueError: a format that the device lacks; a share outside (0, 1].

    Source: Williams, Waterman, Patterson, Roofline, CACM 52 (2009), 65.
    """
    for name, share in (("compute", compute), ("traffic", traffic)):
        if not 0 < share <= 1:
            raise ValueError(f"roofline: {name} is {share!r}; wanted a share of the peak above 0 and up to 1")
    arithmetic = operations / (device.peak(dtype, sparse=sparse) * compute)
    memory = size / (device.bandwidth * traffic)
    arrays = [value for value in (arithmetic, memory) if is_array_api_obj(value)]
    if not arrays:
        return max(arithmetic, memory)
    xp = array_namespace(*arrays)
    arithmetic, memory = (value if is_array_api_obj(value) else xp.asarray(value) for value in (arithmetic, memory))
    return xp.where(arithmetic > memory, arithmetic, memory)
