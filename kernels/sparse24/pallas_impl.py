"""Pallas: the places of a group are planes, so that whole vectors are compared, picked and multiplied.

A word of places speaks of four groups; with the four groups as planes too, each program takes whole words.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Bool, Float, Shaped, UInt16

from common.ops import Exported

from . import jax_impl

LANES = 512
"""Words, or groups, of one program."""
TILE = {"cpu": (32, 64), "gpu": (32, 64), "tpu": (128, 128)}
"""Rows of x and rows of W of one program of the product, by platform."""
WORDS = 16
"""Taken at a time in a product."""


def mask(weights: Shaped[Array, "rows k"], *, paired: bool = False) -> Bool[Array, "rows k"]:
    _refuse_double("mask", weights)
    if not weights.size:
        return jnp.zeros(weights.shape, bool)
    sizes = rearrange(jax_impl.sizes(weights, paired), "rows group place -> place (rows group)")
    (kept,) = _walk(_mask_kernel, (4,), sizes.astype(jnp.int32))
    groups = weights.shape[1] // (8 if paired else 4)
    kept = kept.T.reshape(weights.shape[0], 4 * groups) != 0
    return jnp.repeat(kept, 2 if paired else 1, axis=-1).reshape(weights.shape)


def pack(
    weights: Shaped[Array, "rows k"], mask: Bool[Array, "rows k"], *, paired: bool = False
) -> tuple[Shaped[Array, "rows half"], UInt16[Array, "rows words"]]:
    _refuse_double("pack", weights)
    (rows, k), unit = weights.shape, 1 + paired
    if not weights.size:
        return jax_impl.pack(weights, mask, paired=paired)
    planes = _planes(jax_impl.bits(weights), 4, unit)
    kept = _planes(mask.astype(jnp.int32), 4, unit)[::unit]
    # What fills the last word of a row keeps 1100 of nothing: its bits are taken away again.
    values, meta = _walk(_pack_kernel, (8 * unit, 1), planes.astype(jnp.int32), kept)
    values = _rows(values, rows)[:, : k // 2].astype(jax_impl.UNSIGNED[weights.dtype.itemsize])
    places = jax_impl.nibbles(meta.reshape(rows, meta.size // rows))[:, : k // (4 * unit)]
    return lax.bitcast_convert_type(values, weights.dtype), jax_impl.words(places)


def unpack(
    values: Shaped[Array, "rows half"], meta: UInt16[Array, "rows words"], *, k: int, paired: bool = False
) -> Shaped[Array, "rows k"]:
    _refuse_double("unpack", values)
    rows, unit = values.shape[0], 1 + paired
    if not values.size:
        return jax_impl.unpack(values, meta, k=k, paired=paired)
    planes = _planes(jax_impl.bits(values), 2, unit).astype(jnp.int32)
    (found,) = _walk(_unpack_kernel, (16 * unit,), planes, meta.reshape(1, meta.size).astype(jnp.int32))
    weights = _rows(found, rows)[:, :k].astype(jax_impl.UNSIGNED[values.dtype.itemsize])
    return lax.bitcast_convert_type(weights, values.dtype)


def matmul(
    x: Float[Array, "*batch k"],
    values: Shaped[Array, "rows stored"],
    meta: UInt16[Array, "rows words"],
    scale: Float[Array, " rows"] | None = None,
    *,
    paired: bool = False,
) -> Float[Array, "*batch rows"]:
    _refuse_double("matmul", x)
    unit, n, k = 1 + paired, values.shape[0], x.shape[-1]
    if not x.size or not values.size:
        return jax_impl.matmul(x, values, meta, scale, paired=paired)
    platform = jax.default_backend()
    across, down = TILE[platform]
    flat = lax.stop_gradient(x).reshape(x.size // k, k)
    pads = (-meta.shape[1] % WORDS, -n % down, -flat.shape[0] % across)
    nibbles = values.dtype == jnp.uint8
    inputs = _features(flat, 16 * unit, pads[0], pads[2])
    stored = _features(values, 4 * unit if nibbles else 8 * unit, pads[0], pads[1])
    places = jnp.pad(meta.T, ((0, pads[0]), (0, pads[1])))
    y = _product(inputs, stored, places, unit, nibbles, platform)[:n, : flat.shape[0]].T.reshape(*x.shape[:-1], n)
    return y if scale is None else y * scale


def _refuse_double(name: str, array: Array) -> None:
    if array.dtype.itemsize == 8:
        raise ValueError(f"{name}: backend 'pallas' computes in 32 bits, got {array.dtype}; use backend='jax'")


def _planes(x: Array, each: int, unit: int) -> Array:
    """(rows, groups * each * unit) as (4 * each * unit, rows * words): a column is what a word speaks of."""
    size = 4 * each * unit
    words = -(-x.shape[1] // size)
    padded = jnp.pad(x, ((0, 0), (0, words * size - x.shape[1])))
    return padded.reshape(x.shape[0] * words, size).T


def _rows(planes: Array, rows: int) -> Array:
    """The inverse, with what was filled up."""
    return planes.T.reshape(rows, planes.size // rows)


def _features(x: Array, size: int, pad_words: int, pad_rows: int) -> Array:
    """(rows, features) as (size, words, rows), filled with zeros."""
    words = -(-x.shape[1] // size)
    x = jnp.pad(x, ((0, pad_rows), (0, (words + pad_words) * size - x.shape[1])))
    return rearrange(x, "row (word plane) -> plane word row", plane=size)


def _walk(kernel: Any, rows: tuple[int, ...], *planes: Array) -> list[Array]:
    """The planes filled up to whole programs, walked over, and cut again."""
    count = planes[0].shape[1]
    padded = [jnp.pad(each, ((0, 0), (0, -count % LANES))) for each in planes]
    return [each[:, :count] for each in _called(kernel, rows, jax.default_backend(), *padded)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _called(kernel: Any, rows: tuple[int, ...], platform: str, *planes: Array) -> Sequence[Array]:
    count = planes[0].shape[1]

    def block(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((height, LANES), lambda i: (0, i))

    return pl.pallas_call(
        kernel,
        grid=(count // LANES,),
        in_specs=[block(each.shape[0]) for each in planes],
        out_specs=[block(height) for height in rows],
        out_shape=[jax.ShapeDtypeStruct((height, count), jnp.int32) for height in rows],
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(*planes)


def _mask_kernel(sizes: Any, kept: Any) -> None:
    size = [sizes[place, :] for place in range(4)]
    for i in range(4):
        # Of two equal ones the first wins; who wins two of its three comparisons is kept.
        wins = [(size[i] >= size[j] if i < j else size[i] > size[j]).astype(jnp.int32) for j in range(4) if j != i]
        kept[i, :] = (wins[0] + wins[1] + wins[2] >= 2).astype(jnp.int32)


def _pack_kernel(weights: Any, mask: Any, values: Any, meta: Any) -> None:
    unit = values.shape[0] // 8
    word = jnp.zeros(weights.shape[1:], jnp.int32)
    for s in range(4):
        a, b, c, d = (mask[4 * s + place, :] != 0 for place in range(4))
        for u in range(unit):
            w0, w1, w2, w3 = (weights[(4 * s + place) * unit + u, :] for place in range(4))
            values[2 * s * unit + u, :] = jnp.where(a, w0, jnp.where(b, w1, w2))
            values[(2 * s + 1) * unit + u, :] = jnp.where(d, w3, jnp.where(c, w2, w1))
        i0 = jnp.where(a, 0, jnp.where(b, 1, 2))
        i1 = jnp.where(d, 3, jnp.where(c, 2, 1))
        word |= (i0 + 4 * i1) << (4 * s)
    meta[0, :] = word


def _unpack_kernel(values: Any, meta: Any, weights: Any) -> None:
    unit = values.shape[0] // 8
    word = meta[0, :]
    for s in range(4):
        i0, i1 = (word >> (4 * s)) & 3, (word >> (4 * s + 2)) & 3
        for u in range(unit):
            v0, v1 = values[2 * s * unit + u, :], values[(2 * s + 1) * unit + u, :]
            for place in range(4):
                weights[(4 * s + place) * unit + u, :] = jnp.where(i1 == place, v1, jnp.where(i0 == place, v0, 0))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _product(x: Array, values: Array, meta: Array, unit: int, nibbles: bool, platform: str) -> Array:
    """(n, m) of x (16 unit, words, m), values (planes, words, n) and places (words, n)."""
    (_, words, m), n = x.shape, meta.shape[1]
    across, down = TILE[platform]
    return pl.pallas_call(
        functools.partial(_product_kernel, unit=unit, nibbles=nibbles),
        grid=(m // across, n // down),
        in_specs=[
            pl.BlockSpec((16 * unit, words, across), lambda i, j: (0, 0, i)),
            pl.BlockSpec((values.shape[0], words, down), lambda i, j: (0, 0, j)),
            pl.BlockSpec((words, down), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((down, across), lambda i, j: (j, i)),
        out_shape=jax.ShapeDtypeStruct((n, m), x.dtype),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(x, values, meta)


def _product_kernel(x: Any, values: Any, meta: Any, out: Any, *, unit: int, nibbles: bool) -> None:
    def step(i: Any, found: Any) -> Any:
        some = pl.ds(i * WORDS, WORDS)
        word = meta[some, :].astype(jnp.int32)
        for s in range(4):
            i0, i1 = (word >> (4 * s)) & 3, (word >> (4 * s + 2)) & 3
            for u in range(unit):
                v0, v1 = (_stored(values, some, (2 * s + j) * unit + u, nibbles, out.dtype) for j in (0, 1))
                for place in range(4):
                    weights = jnp.where(i1 == place, v1, jnp.where(i0 == place, v0, jnp.zeros_like(v0)))
                    found += lax.dot_general(
                        weights, x[(4 * s + place) * unit + u, some, :], (((0,), (0,)), ((), ())),
                        precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
                    )  # fmt: skip
        return found

    out[...] = lax.fori_loop(0, meta.shape[0] // WORDS, step, jnp.zeros(out.shape, jnp.float32)).astype(out.dtype)


def _stored(values: Any, some: Any, place: int, nibbles: bool, dtype: Any) -> Any:
    if not nibbles:
        return values[place, some, :].astype(dtype)
    byte = values[place // 2, some, :].astype(jnp.int32)
    return ((((byte >> (4 * (place % 2))) & 15) ^ 8) - 8).astype(dtype)


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for unit in (1, 2):
            walks = {
                "mask": (_mask_kernel, (4,), (4,)),
                "pack": (_pack_kernel, (8 * unit, 1), (16 * unit, 16)),
                "unpack": (_unpack_kernel, (16 * unit,), (8 * unit, 1)),
            }
            for walk, (kernel, found, taken) in walks.items():
                function = functools.partial(_called, kernel, found, platform)
                yield Exported(f"{walk}-{unit}-{name}", function, tuple(((each, 2 * LANES), "int32") for each in taken), (name,))
        across, down = TILE[platform]
        for unit, stored, planes in ((1, "int8", 8), (2, "uint8", 8), (1, "float32", 8)):
            function = functools.partial(_product, unit=unit, nibbles=stored == "uint8", platform=platform)
            shapes = (
                ((16 * unit, 2 * WORDS, 2 * across), "float32"),
                ((planes, 2 * WORDS, 2 * down), stored),
                ((2 * WORDS, 2 * down), "uint16"),
            )
            yield Exported(f"matmul-{unit}-{stored}-{name}", function, shapes, (name,))
