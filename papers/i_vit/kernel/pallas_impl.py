"""Pallas: a few rows a program. The wide GELU and the norm need 64-bit integers, which GPUs have and TPUs lack, so the room is
declared for GPUs alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Int, Int32

from common.ops import Exported

from .jax_impl import gelu_of_rows, norm_of_rows, softmax_of_rows

ROWS = 4


def shiftmax(x: Int[Array, "*rows count"], *, unit: int, n: int = 15, bits: int = 16) -> Int[Array, "*rows count"]:
    dtype = jnp.int16 if bits == 16 else jnp.int8
    return _call(x, functools.partial(_shiftmax, unit=unit, n=n, bits=bits, count=x.shape[-1]), dtype)


def shift_gelu(
    x: Int[Array, "*rows count"], *, unit: int, n: int = 23, wide: bool = False, shifts: bool = False
) -> Int32[Array, "*rows count"]:
    # Filling with zeros changes no row's largest entry above 0.
    return _call(x, functools.partial(_shift_gelu, unit=unit, n=n, wide=wide, shifts=shifts), jnp.int32)


def i_layernorm(x: Int[Array, "*rows count"], *, steps: int = 10) -> Int32[Array, "*rows count"]:
    return _call(x, functools.partial(_i_layernorm, steps=steps, count=x.shape[-1]), jnp.int32)


def _shiftmax(x: Any, out: Any, *, unit: int, n: int, bits: int, count: int) -> None:
    out[...] = softmax_of_rows(x[...], unit, n, bits, count)


def _shift_gelu(x: Any, out: Any, *, unit: int, n: int, wide: bool, shifts: bool) -> None:
    if wide:
        with jax.enable_x64(True):
            out[...] = gelu_of_rows(x[...].astype(jnp.int64), unit, n, 62, shifts).astype(jnp.int32)
    else:
        out[...] = gelu_of_rows(x[...].astype(jnp.int32), unit, n, 31, shifts)


def _i_layernorm(x: Any, out: Any, *, steps: int, count: int) -> None:
    with jax.enable_x64(True):
        out[...] = norm_of_rows(x[...], steps, count)


def _call(x: Array, kernel: Callable[..., None], dtype: Any) -> Array:
    if x.size == 0:
        return jnp.zeros(x.shape, dtype)
    *rows, count = x.shape
    flat = x.reshape(-1, count)
    padded = jnp.pad(flat, ((0, -len(flat) % ROWS), (0, (1 << (count - 1).bit_length()) - count)))
    out = launch(padded, kernel, dtype, jax.default_backend())
    return out[: len(flat), :count].reshape(*rows, count)


def launch(x: Array, kernel: Callable[..., None], dtype: Any, platform: str) -> Array:
    spec = pl.BlockSpec((ROWS, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(x.shape[0] // ROWS,),
        in_specs=[spec],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(x.shape, dtype),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(x)


def exports() -> Iterator[Exported]:
    kernels = {
        "shiftmax": (functools.partial(_shiftmax, unit=16, n=15, bits=16, count=197), 256, jnp.int16),
        "shift_gelu": (functools.partial(_shift_gelu, unit=13, n=16, wide=False, shifts=False), 2048, jnp.int32),
        "shift_gelu-wide": (functools.partial(_shift_gelu, unit=13, n=40, wide=True, shifts=True), 2048, jnp.int32),
        "i_layernorm": (functools.partial(_i_layernorm, steps=10, count=384), 512, jnp.int32),
    }
    for name, (kernel, width, dtype) in kernels.items():
        function = functools.partial(launch, kernel=kernel, dtype=dtype, platform="gpu")
        yield Exported(name, function, (((8, width), "int16" if name == "i_layernorm" else "int8"),), ("cuda",))
