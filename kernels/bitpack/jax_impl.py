"""JAX: a group of values becomes a group of bytes by a few shifts of whole columns, which XLA fuses into one loop."""

from __future__ import annotations

import functools
import operator

import jax.numpy as jnp
from jax import Array
from jaxtyping import UInt8

from .layout import group, terms


def pack(values: UInt8[Array, "*rows count"], *, bits: int, high_first: bool = True) -> UInt8[Array, "*rows bytes"]:
    size, width = group(bits)
    used = -(-values.shape[-1] * bits // 8)
    groups, listed = grouped(values, size), terms(bits, high_first)
    parts = [[shifted(groups[..., value], shift) for byte, value, shift in listed if byte == b] for b in range(width)]
    return _joined(parts)[..., :used]


def unpack(packed: UInt8[Array, "*rows bytes"], *, bits: int, count: int, high_first: bool = True) -> UInt8[Array, "*rows count"]:
    size, width = group(bits)
    groups, listed = grouped(packed, width), terms(bits, high_first)
    parts = [[shifted(groups[..., byte], -shift) for byte, value, shift in listed if value == v] for v in range(size)]
    return (_joined(parts) & jnp.uint8(2**bits - 1))[..., :count]


def grouped(x: Array, size: int) -> Array:
    """(*rows, n) as (*rows, groups, size), the last group filled with zeros. Shared with the Pallas backend."""
    groups = -(-x.shape[-1] // size)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, groups * size - x.shape[-1])]
    return jnp.pad(x, padding).reshape(*x.shape[:-1], groups, size)


def shifted(x: Array, shift: int) -> Array:
    return x << shift if shift >= 0 else x >> -shift


def _joined(parts: list[list[Array]]) -> Array:
    columns = jnp.stack([functools.reduce(operator.or_, part) for part in parts], axis=-1)
    return columns.reshape(*columns.shape[:-2], columns.shape[-2] * columns.shape[-1])
