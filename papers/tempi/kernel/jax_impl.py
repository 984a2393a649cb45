"""JAX: reshapes and slices where the loops lie within one another, a gather where they do not."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import UInt8

Loops = tuple[tuple[int, int], ...]
"""(count, stride) of each loop, the outermost first; the innermost has stride 1."""


def strided_pack(
    source: UInt8[Array, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> UInt8[Array, " packed"]:
    if 0 in counts:
        return jnp.zeros(0, jnp.uint8)
    loops = tuple(zip(counts[::-1], strides[::-1], strict=True))
    if not _nested(loops):
        return source[offsets(start, loops)]
    return _take(source[None, start : start + _reach(loops)], loops).reshape(-1)


def strided_unpack(
    packed: UInt8[Array, " packed"],
    target: UInt8[Array, " bytes"],
    *,
    start: int,
    counts: tuple[int, ...],
    strides: tuple[int, ...],
) -> UInt8[Array, " bytes"]:
    if 0 in counts:
        return target
    loops = tuple(zip(counts[::-1], strides[::-1], strict=True))
    if not _nested(loops):
        return target.at[offsets(start, loops)].set(packed, unique_indices=True)
    end = start + _reach(loops)
    return target.at[start:end].set(_put(target[None, start:end], packed[None], loops)[0])


def offsets(start: int, loops: Loops) -> np.ndarray:
    """The offset of every byte; a constant of the traced function."""
    at = np.full(1, start, np.int64)
    for count, stride in loops:
        at = (at[:, None] + np.arange(count) * stride).reshape(-1)
    return at.astype(np.int32) if at.max() < 2**31 else at


def _nested(loops: Loops) -> bool:
    """Whether each loop steps over all that is within it."""
    return all(stride >= _reach(loops[i + 1 :]) for i, (_, stride) in enumerate(loops))


def _reach(loops: Loops) -> int:
    """Bytes from the first to the last of nested loops."""
    return 1 + sum((count - 1) * stride for count, stride in loops)


def _take(memory: Array, loops: Loops) -> Array:
    """The block of each row of memory (rows, reach) -> (rows, packed)."""
    (count, stride), within = loops[0], loops[1:]
    if not within:
        return memory[:, :count]
    padded = jnp.pad(memory, ((0, 0), (0, count * stride - memory.shape[1])))
    steps = padded.reshape(memory.shape[0] * count, stride)[:, : _reach(within)]
    return _take(steps, within).reshape(memory.shape[0], -1)


def _put(memory: Array, packed: Array, loops: Loops) -> Array:
    """The reverse: memory (rows, reach) with the block of each row replaced."""
    (count, stride), within = loops[0], loops[1:]
    if not within:
        return packed
    rows, reach = memory.shape
    steps = jnp.pad(memory, ((0, 0), (0, count * stride - reach))).reshape(rows * count, stride)
    size = math.prod(n for n, _ in within)
    inner = _put(steps[:, : _reach(within)], packed.reshape(rows * count, size), within)
    return jnp.concatenate([inner, steps[:, inner.shape[1] :]], axis=1).reshape(rows, -1)[:, :reach]
