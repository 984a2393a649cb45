"""The definition: the offset of every byte, and one indexing."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Int, UInt8


def strided_pack(
    source: UInt8[Any, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> UInt8[Any, " packed"]:
    return source[_offsets(source, start, counts, strides)]


def strided_unpack(
    packed: UInt8[Any, " packed"], target: UInt8[Any, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> UInt8[Any, " bytes"]:
    result = array_namespace(target).asarray(target, copy=True)
    result[_offsets(target, start, counts, strides)] = packed
    return result


def _offsets(like: Any, start: int, counts: tuple[int, ...], strides: tuple[int, ...]) -> Int[Any, " packed"]:
    xp = array_namespace(like)
    at = xp.full((1,), start, dtype=xp.int64)
    for count, stride in zip(reversed(counts), reversed(strides), strict=True):
        at = xp.reshape(at[:, None] + xp.arange(count, dtype=xp.int64) * stride, (-1,))
    return at
