"""JAX: the two-phase algorithm in whole-array operations; all threads walk in step, and those outside their piece wait."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jaxtyping import Int16, Int32, UInt8

from .layout import BITS, BYTES, POINTER


def decode(
    stream: UInt8[Array, " bytes"],
    gaps: UInt8[Array, " gap_bytes"],
    tables: UInt8[Array, "tables 256"],
    positions: Int32[Array, " edges"],
    sign_mantissa: UInt8[Array, " count"],
    *,
    threads: int = 512,
    variant: str | None = None,
) -> Int16[Array, " count"]:
    if variant not in (None, "parallel"):
        raise ValueError(f"decode: backend 'jax' has the variant 'parallel', not {variant!r}")
    if not sign_mantissa.size:
        return jnp.zeros(0, jnp.int16)
    return _decode(stream, gaps, tables, positions, sign_mantissa, threads)


@functools.partial(jax.jit, static_argnames="threads")
def _decode(stream: Array, gaps: Array, tables: Array, positions: Array, sign_mantissa: Array, threads: int) -> Array:
    grid, count = positions.size - 1, sign_mantissa.size
    # The threads of the last block that own nothing, and what a thread sees ahead of its piece, are zeros.
    data = jnp.pad(stream, (0, grid * threads * BYTES + 2 * BYTES - stream.size))
    first = jnp.arange(grid * threads, dtype=jnp.int32) * BYTES
    gap = unpack_gaps(gaps)

    def count_one(state: tuple[Array, Array]) -> tuple[Array, Array]:
        bit, counts = state
        inside = bit < BITS
        _, length = _look(data, first, bit, tables)
        return bit + jnp.where(inside, length, 0), counts + inside

    _, counts = lax.while_loop(lambda state: (state[0] < BITS).any(), count_one, (gap, jnp.zeros_like(gap)))
    per_block = rearrange(counts, "(block thread) -> block thread", thread=threads)
    before = jnp.cumsum(per_block, axis=1) - per_block + positions[:-1, None]

    def write_one(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        bit, place, exponent = state
        inside = bit < BITS
        symbol, length = _look(data, first, bit, tables)
        # What padding decodes to falls behind the last number and is dropped.
        exponent = exponent.at[jnp.where(inside, place, count)].set(symbol.astype(jnp.uint8), mode="drop")
        return bit + jnp.where(inside, length, 0), place + inside, exponent

    start = (gap, before.reshape(-1), jnp.zeros(count, jnp.uint8))
    _, _, exponent = lax.while_loop(lambda state: (state[0] < BITS).any(), write_one, start)
    return combine(exponent, sign_mantissa)


def unpack_gaps(gaps: Array) -> Array:
    """Eight gaps of five bits fill five bytes: gap k begins at bit 5 k."""
    byte = rearrange(gaps, "(group byte) -> group byte", byte=5).astype(jnp.int32)
    start = 5 * jnp.arange(8)
    pair = byte[:, start // 8] << 8 | byte[:, jnp.minimum(start // 8 + 1, 4)]
    return (pair >> (11 - start % 8) & 31).reshape(-1)


def combine(exponent: Array, sign_mantissa: Array) -> Array:
    """The sixteen bits of each number."""
    rest = sign_mantissa.astype(jnp.uint16)
    bits = (rest & 0x80) << 8 | exponent.astype(jnp.uint16) << 7 | rest & 0x7F
    return lax.bitcast_convert_type(bits, jnp.int16)


def _look(data: Array, first: Array, bit: Array, tables: Array) -> tuple[Array, Array]:
    """(exponent, length) of the code at a bit of each thread's piece."""
    byte, shift = first + (bit >> 3), (bit & 7).astype(jnp.uint32)
    four: Any = sum(data[byte + ahead].astype(jnp.uint32) << 8 * (3 - ahead) for ahead in range(4))
    window = four << shift | data[byte + 4].astype(jnp.uint32) >> 8 - shift
    entry = tables[0, window >> 24].astype(jnp.int32)
    for level in range(1, min(4, len(tables) - 1)):
        table = jnp.minimum(256 - entry, len(tables) - 2)
        entry = jnp.where(entry >= POINTER, tables[table, window >> 24 - 8 * level & 255].astype(jnp.int32), entry)
    return entry, jnp.maximum(tables[-1, entry].astype(jnp.int32), 1)
