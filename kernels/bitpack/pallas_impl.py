"""Pallas: groups lie along the lanes, one row for each value of a group, so that every shift is of a whole vector."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import UInt8

from common.ops import Exported

from .jax_impl import grouped
from .layout import group, terms

LANES = 512
"""Groups of one program."""


def pack(values: UInt8[Array, "*rows count"], *, bits: int, high_first: bool = True) -> UInt8[Array, "*rows bytes"]:
    size, width = group(bits)
    used = -(-values.shape[-1] * bits // 8)
    return _columns(grouped(values, size), width, bits, high_first, True)[..., :used]


def unpack(packed: UInt8[Array, "*rows bytes"], *, bits: int, count: int, high_first: bool = True) -> UInt8[Array, "*rows count"]:
    size, width = group(bits)
    return _columns(grouped(packed, width), size, bits, high_first, False)[..., :count]


def _columns(groups: Array, columns: int, bits: int, high_first: bool, packing: bool) -> Array:
    *rows, count, _ = groups.shape
    flat = rearrange(groups, "... size -> size (...)") if groups.size else jnp.zeros((groups.shape[-1], 0), jnp.uint8)
    whole = -(-flat.shape[1] // LANES) * LANES
    out = jnp.zeros((columns, 0), jnp.uint8)
    if whole:
        flat = jnp.pad(flat, ((0, 0), (0, whole - flat.shape[1])))
        out = _move(flat, columns, bits, high_first, packing, jax.default_backend())
    return out[:, : groups.size // groups.shape[-1]].T.reshape(*rows, count * columns)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _move(flat: Array, columns: int, bits: int, high_first: bool, packing: bool, platform: str) -> Array:
    return pl.pallas_call(
        functools.partial(_kernel, bits=bits, high_first=high_first, packing=packing),
        grid=(flat.shape[1] // LANES,),
        in_specs=[pl.BlockSpec((flat.shape[0], LANES), lambda i: (0, i))],
        out_specs=pl.BlockSpec((columns, LANES), lambda i: (0, i)),
        out_shape=jax.ShapeDtypeStruct((columns, flat.shape[1]), jnp.uint8),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(flat)


def _kernel(source: Any, target: Any, *, bits: int, high_first: bool, packing: bool) -> None:
    mask = 255 if packing else 2**bits - 1
    listed = [term if packing else (term.value, term.byte, -term.shift) for term in terms(bits, high_first)]
    for column in range(target.shape[0]):
        found = jnp.zeros(target.shape[1:], jnp.int32)
        for to, of, shift in listed:
            if to == column:
                value = source[of, :].astype(jnp.int32)
                found |= value << shift if shift >= 0 else value >> -shift
        target[column, :] = (found & mask).astype(jnp.uint8)


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for bits in range(1, 9):
            size, width = group(bits)
            for packing, rows, columns in ((True, size, width), (False, width, size)):
                function = functools.partial(
                    _move, columns=columns, bits=bits, high_first=True, packing=packing, platform=platform
                )
                shapes = (((rows, 2 * LANES), "uint8"),)
                yield Exported(f"{'pack' if packing else 'unpack'}-{bits}-{name}", function, shapes, (name,))
