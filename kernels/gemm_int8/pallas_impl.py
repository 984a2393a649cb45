"""Pallas: a tile of the product a program, the inner axis walked in steps; the rescaling needs 64-bit integers, which GPUs
have and TPUs lack, so it is declared for GPUs alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int, Int8, Int32

from common.ops import Exported

from .jax_impl import DTYPES, rescaled

TILE = 64
"""Rows, columns and inner entries of a step."""


def matmul_int8(
    x: Int8[Array, "*rows inner"], weight: Int8[Array, "outer inner"], bias: Int32[Array, " outer"] | None = None
) -> Int32[Array, "*rows outer"]:
    return _call(x, weight, bias, None, None, "raw", 32)


def matmul_int8_dyadic(
    x: Int8[Array, "*rows inner"],
    weight: Int8[Array, "outer inner"],
    bias: Int32[Array, " outer"] | None,
    multiplier: Int32[Array, " channels"],
    shift: Int32[Array, " channels"],
    *,
    bits: int = 8,
) -> Int[Array, "*rows outer"]:
    return _call(x, weight, bias, multiplier, shift, "dyadic", bits)


def matmul_int8_scaled(
    x: Int8[Array, "*rows inner"],
    weight: Int8[Array, "outer inner"],
    x_scale: Float[Array, "*some"],
    weight_scale: Float[Array, " scales"],
    bias: Float[Array, " outer"] | None = None,
) -> Float[Array, "*rows outer"]:
    rows = jnp.broadcast_to(x_scale, (*x.shape[:-1], 1)).reshape(-1)
    return _call(x, weight, bias, rows, weight_scale, "scaled", 32)


def requantise(
    x: Int[Array, "*rows channel"],
    multiplier: Int32[Array, " channels"],
    shift: Int32[Array, " channels"],
    *,
    bits: int = 8,
) -> Int[Array, "*rows channel"]:
    channels = x.shape[-1]
    flat = x.reshape(-1, channels)
    if flat.size == 0:
        return jnp.zeros(x.shape, DTYPES[bits])
    m, e = (_filled(jnp.broadcast_to(each, (channels,))) for each in (multiplier, shift))
    out = _rescale(_padded(flat), m, e, bits, jax.default_backend())
    return out[: len(flat), :channels].reshape(x.shape)


def _call(x: Array, weight: Array, bias: Any, first: Any, second: Any, epilogue: str, bits: int) -> Array:
    (outer, inner), rows = weight.shape, x.shape[:-1]
    flat = x.reshape(-1, inner)
    kind = jnp.float32 if epilogue == "scaled" else jnp.int32
    if flat.shape[0] == 0 or outer == 0:
        return jnp.zeros((*rows, outer), jnp.float32 if epilogue == "scaled" else DTYPES[bits])
    per_row = jnp.zeros((len(flat),), kind) if first is None else first if epilogue == "scaled" else jnp.zeros((len(flat),), kind)
    per_channel = [jnp.zeros((outer,), kind) if bias is None else bias]
    per_channel.append(first if epilogue == "dyadic" else jnp.zeros((1,), kind))
    per_channel.append(jnp.zeros((1,), kind) if second is None else second)
    several = [_filled(jnp.broadcast_to(each, (outer,))) for each in per_channel]
    out = _matmul(_padded(flat), _padded(weight), _filled(per_row), *several, epilogue, bits, jax.default_backend())
    return out[: len(flat), :outer].reshape(*rows, outer)


def _padded(x: Array) -> Array:
    return jnp.pad(x, [(0, -size % TILE) for size in x.shape])


def _filled(x: Array) -> Array:
    return jnp.pad(x, (0, -x.shape[0] % TILE))


def _options(platform: str) -> dict[str, Any]:
    gpu = plt.CompilerParams(num_warps=4, num_stages=3) if platform == "gpu" else None
    return {"interpret": platform == "cpu", "compiler_params": gpu}


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _matmul(
    x: Array, weight: Array, rows: Array, bias: Array, first: Array, second: Array, epilogue: str, bits: int, platform: str
) -> Array:
    inner = x.shape[1]
    along = pl.BlockSpec((TILE,), lambda i, o: (o,))
    return pl.pallas_call(
        functools.partial(_matmul_kernel, epilogue=epilogue, bits=bits, steps=inner // TILE),
        grid=(x.shape[0] // TILE, weight.shape[0] // TILE),
        in_specs=[
            pl.BlockSpec((TILE, inner), lambda i, o: (i, 0)), pl.BlockSpec((TILE, inner), lambda i, o: (o, 0)),
            pl.BlockSpec((TILE,), lambda i, o: (i,)), along, along, along,
        ],
        out_specs=pl.BlockSpec((TILE, TILE), lambda i, o: (i, o)),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32 if epilogue == "scaled" else DTYPES[bits]),
        **_options(platform),
    )(x, weight, rows, bias, first, second)  # fmt: skip


def _matmul_kernel(
    x: Any, weight: Any, rows: Any, bias: Any, first: Any, second: Any, out: Any, *, epilogue: str, bits: int, steps: int
) -> None:
    def step(k: Array, total: Array) -> Array:
        part = pl.ds(k * TILE, TILE)
        return total + lax.dot_general(x[:, part], weight[:, part], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)

    total = lax.fori_loop(0, steps, step, jnp.zeros((TILE, TILE), jnp.int32))
    if epilogue == "scaled":
        out[...] = total.astype(jnp.float32) * rows[...][:, None] * second[...][None, :] + bias[...][None, :]
    elif epilogue == "raw":
        out[...] = total + bias[...][None, :]
    else:
        with jax.enable_x64(True):
            out[...] = rescaled(total + bias[...][None, :], first[...][None, :], second[...][None, :], bits)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _rescale(x: Array, multiplier: Array, shift: Array, bits: int, platform: str) -> Array:
    along = pl.BlockSpec((TILE,), lambda i, o: (o,))
    square = pl.BlockSpec((TILE, TILE), lambda i, o: (i, o))
    return pl.pallas_call(
        functools.partial(_rescale_kernel, bits=bits),
        grid=(x.shape[0] // TILE, x.shape[1] // TILE),
        in_specs=[square, along, along],
        out_specs=square,
        out_shape=jax.ShapeDtypeStruct(x.shape, DTYPES[bits]),
        **_options(platform),
    )(x, multiplier, shift)


def _rescale_kernel(x: Any, multiplier: Any, shift: Any, out: Any, *, bits: int) -> None:
    with jax.enable_x64(True):
        out[...] = rescaled(x[...], multiplier[...][None, :], shift[...][None, :], bits)


def exports() -> Iterator[Exported]:
    for epilogue, bits, kind in (
        ("dyadic", 8, "int32"),
        ("dyadic", 16, "int32"),
        ("raw", 32, "int32"),
        ("scaled", 32, "float32"),
    ):
        function = functools.partial(_matmul, epilogue=epilogue, bits=bits, platform="gpu")
        shapes = (((128, 384), "int8"), ((64, 384), "int8"), ((128,), kind), ((64,), kind), ((64,), kind), ((64,), kind))
        yield Exported(f"matmul-{epilogue}-{bits}", function, shapes, ("cuda",))
    function = functools.partial(_rescale, bits=8, platform="gpu")
    yield Exported("requantise", function, (((128, 64), "int32"), ((64,), "int32"), ((64,), "int32")), ("cuda",))
