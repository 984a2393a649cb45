"""Pack and unpack a strided block: nested loops over memory on one side, bytes side by side on the other."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import UInt8

from common.ops import operation

__all__ = ["LEVELS", "strided_pack", "strided_unpack"]

BACKENDS = ("torch", "triton", "jax", "pallas")
LEVELS = 5
"""Loops at most: contiguous bytes, three strides, and the objects."""


@operation(backends=BACKENDS, exact=True)
def strided_pack(
    source: UInt8[Any, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...], backend: str | None = None
) -> UInt8[Any, " packed"]:
    """Copy a strided block to bytes side by side:

        packed[... + (i_2 counts_1 + i_1) counts_0 + i_0] = source[start + sum_d i_d strides_d],   0 <= i_d < counts_d

    The innermost loop comes first; ``strides[0]`` is 1. Strides may be negative, and the bytes that they reach may overlap.
    The loops' order is that of the packed bytes: MPI's if they come from :func:`papers.tempi.ir.ordered`.

    Raises:
        ValueError: counts and strides that are no loops (lengths, more than 5 levels, a negative count, strides[0] not 1), or
            that leave the source. TypeError: an array that is not uint8.

    Source: the paper, section 4; ``pack_kernels.cuh`` of the authors' code.
    """
    counts, strides = _door("strided_pack", source, start, counts, strides)
    return strided_pack.operation(source, start=start, counts=counts, strides=strides, backend=backend)


@operation(backends=BACKENDS, exact=True)
def strided_unpack(
    packed: UInt8[Any, " packed"],
    target: UInt8[Any, " bytes"],
    *,
    start: int,
    counts: tuple[int, ...],
    strides: tuple[int, ...],
    out: Any = None,
    backend: str | None = None,
) -> UInt8[Any, " bytes"]:
    """The target with a strided block of it replaced by packed bytes: the reverse of :func:`strided_pack`.

        result[start + sum_d i_d strides_d] = packed[...],   elsewhere target

    Args:
        out: PyTorch only; the target itself for an unpacking in place.

    Raises:
        ValueError, TypeError: as :func:`strided_pack`; packed bytes that are not the block's; loops in which a byte is the
            target of two, so that the result would depend on their order; an ``out`` that is not the target.
    """
    counts, strides = _door("strided_unpack", target, start, counts, strides)
    _bytes("strided_unpack", "packed", packed)
    if packed.shape[0] != math.prod(counts):
        raise ValueError(f"strided_unpack: packed has {packed.shape[0]} bytes, the block {math.prod(counts)}")
    reach = 1
    for stride, count in sorted((abs(stride), count) for stride, count in zip(strides, counts, strict=True) if count > 1):
        if stride < reach:
            raise ValueError(f"strided_unpack: loops {counts} with strides {strides} may write a byte twice; unpack in parts")
        reach += (count - 1) * stride
    options: dict[str, Any] = {"start": start, "counts": counts, "strides": strides}
    if out is not None:
        if out is not target:
            raise ValueError("strided_unpack: out is another array than target; pass the target itself to unpack in place")
        options["out"] = out
    return strided_unpack.operation(packed, target, **options, backend=backend)


def _door(name: str, memory: Any, start: int, counts: Any, strides: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    _bytes(name, "target" if name.endswith("unpack") else "source", memory)
    counts, strides = tuple(map(int, counts)), tuple(map(int, strides))
    if not 1 <= len(counts) == len(strides) <= LEVELS or strides[0] != 1 or min(counts) < 0:
        raise ValueError(
            f"{name}: counts {counts} and strides {strides}; wanted 1 to {LEVELS} of each, no negative count, strides[0] 1"
        )
    if 0 not in counts:
        reach = [(count - 1) * stride for count, stride in zip(counts, strides, strict=True)]
        low, high = start + sum(min(0, each) for each in reach), start + sum(max(0, each) for each in reach) + 1
        if low < 0 or high > memory.shape[0]:
            raise ValueError(f"{name}: the block lies in bytes {low} to {high} of an array of {memory.shape[0]}")
    return counts, strides


def _bytes(name: str, what: str, array: Any) -> None:
    if str(array.dtype).rpartition(".")[2] != "uint8" or len(array.shape) != 1:
        raise TypeError(f"{name}: {what} is {array.dtype}{tuple(array.shape)}; wanted one axis of uint8")
