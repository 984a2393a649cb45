"""Unsigned whole numbers of 1 to 8 bits as a dense stream of bytes, and back.

Eight values of b bits fill b bytes; widths 3, 5, 6 and 7 cross the borders of bytes. Every low-bit format of this
repository stands on this stream.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import UInt8

from common.ops import framework, operation, readable


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def pack(
    values: UInt8[Any, "*rows count"], *, bits: int, high_first: bool = True, backend: str | None = None
) -> UInt8[Any, "*rows bytes"]:
    """Write ``bits`` bits of each value one after the other, along the last axis.

    ``high_first``: the stream of bits is V_0's most significant bit first, and the first bit of the stream is the most
    significant bit of byte 0: two 4-bit values share a byte with the first in the high half (bitsandbytes, QLoRA).
    Otherwise both orders are reversed: V_0's least significant bit is the least significant bit of byte 0, as in a
    little-endian word (GPTQ, AWQ words, ternary formats). Bits behind the last value are zero. A row begins a new byte.

    Args:
        values: uint8, each below 2^bits; any leading axes, also none, and any length, also 0.
        bits: 1 to 8.

    Returns:
        uint8 of shape (*rows, ceil(count bits / 8)).

    Raises:
        ValueError: bits outside 1..8; a value of 2^bits or more (read on the CPU and outside tracing alone).
        TypeError: values that are not uint8.
    """
    _check("pack", "values", values, bits)
    largest = _largest(values)
    if largest >= 1 << bits:
        raise ValueError(f"pack: a value is {largest}; wanted values below 2^{bits} = {1 << bits}, mask them or take more bits")
    return pack.operation(values, bits=bits, high_first=high_first, backend=backend)


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def unpack(
    packed: UInt8[Any, "*rows bytes"], *, bits: int, count: int, high_first: bool = True, backend: str | None = None
) -> UInt8[Any, "*rows count"]:
    """The inverse of :func:`pack`: ``count`` values of ``bits`` bits along the last axis.

    Args:
        packed: uint8 of shape (*rows, ceil(count bits / 8)); what stands behind the last value is ignored.
        bits: 1 to 8.
        count: values in a row; the bytes alone do not say it.

    Returns:
        uint8 of shape (*rows, count), each below 2^bits.

    Raises:
        ValueError: bits outside 1..8; more or fewer bytes than ``count`` values fill.
        TypeError: packed that is not uint8.
    """
    _check("unpack", "packed", packed, bits)
    if count < 0 or packed.shape[-1] != -(-count * bits // 8):
        raise ValueError(
            f"unpack: {packed.shape[-1]} bytes in a row; {count} values of {bits} bits fill {-(-count * bits // 8)}, "
            "pass the count that was packed"
        )
    return unpack.operation(packed, bits=bits, count=count, high_first=high_first, backend=backend)


def _check(name: str, what: str, array: Any, bits: int) -> None:
    if framework(array) is None:
        raise TypeError(f"{name}: {what} is a {type(array).__name__}; wanted a torch tensor, a jax array or a NumPy array")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"{name}: bits is {bits!r}; wanted 1 to 8")
    if str(array.dtype).rpartition(".")[2] != "uint8":
        raise TypeError(f"{name}: {what} has dtype {array.dtype}; wanted uint8, convert first")
    if not array.shape:
        raise ValueError(f"{name}: {what} is a single number; wanted at least one axis")


def _largest(values: Any) -> int:
    """The largest value where reading it is free, else 0."""
    return int(values.max()) if readable(values) and 0 not in values.shape else 0
