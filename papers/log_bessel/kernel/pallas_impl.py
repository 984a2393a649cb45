"""Pallas: one elementwise kernel of the masked expressions, forward and (with the ratios) backward.

It lowers for CUDA and ROCm in float64 and for TPU in float32, which is all that a TPU has: r and v log(x / (v + r)) are
then rounded to 6e-8 of themselves, and the error of the logarithm is that of their sum.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Float

from common.ops import Exported

from . import formulas
from .branches import LOG_I, LOG_K, RATIO_I, RATIO_K
from .jax_impl import apply, differentiable

ROWS, LANES = 8, 128
"""A block: the smallest tile of a TPU, and 1024 points of a GPU program."""


def log_bessel_i(
    order: Float[Array, "*order"], x: Float[Array, "*x"], *, branch: str | None = None, variant: str | None = None
) -> Float[Array, "*out"]:
    """log I_v(x)."""
    return apply(_function, LOG_I, branch, variant, order, x)


def log_bessel_k(
    order: Float[Array, "*order"], x: Float[Array, "*x"], *, branch: str | None = None, variant: str | None = None
) -> Float[Array, "*out"]:
    """log K_v(x)."""
    return apply(_function, LOG_K, branch, variant, order, x)


def bessel_ratio(order: Float[Array, "*order"], x: Float[Array, "*x"], *, variant: str | None = None) -> Float[Array, "*out"]:
    """I_(v+1)(x) / I_v(x)."""
    return apply(_function, RATIO_I, None, variant, order, x)


def exports() -> Iterator[Exported]:
    """Every kernel that can be launched, for the platforms that it lowers for."""
    for name, kind in (("log_i", LOG_I), ("log_k", LOG_K), ("ratio_i", RATIO_I), ("ratio_k", RATIO_K)):
        for dtype, platforms in (("float64", ("cuda", "rocm")), ("float32", ("tpu",))):
            shape = ((2 * ROWS, LANES), dtype)
            yield Exported(f"{name}_{dtype}", functools.partial(_blocks, kind, None, platforms[0]), (shape, shape), platforms)


def _launch(kind: int, branch: int | None, v: Array, x: Array) -> Array:
    """Flatten, pad to whole blocks, compute, cut."""
    block = ROWS * LANES
    count = max(1, -(-x.size // block))
    # Padded with 1, where every function is finite.
    v, z = (jnp.pad(each.reshape(-1), (0, count * block - x.size), constant_values=1).reshape(-1, LANES) for each in (v, x))
    return _blocks(kind, branch, jax.default_backend(), v, z).reshape(-1)[: x.size].reshape(x.shape)


def _blocks(kind: int, branch: int | None, platform: str, v: Array, x: Array) -> Array:
    spec = pl.BlockSpec((ROWS, LANES), lambda i: (i, 0))
    return pl.pallas_call(
        functools.partial(_kernel, kind, branch),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0] // ROWS,),
        in_specs=[spec, spec],
        out_specs=spec,
        interpret=platform == "cpu",
        # On a GPU through Triton, which knows every operation used here and float64.
        compiler_params=None if platform in ("cpu", "tpu") else triton.CompilerParams(num_warps=4, num_stages=1),
    )(v, x)


def _kernel(kind: int, branch: int | None, v_ref: Any, x_ref: Any, out_ref: Any) -> None:
    out_ref[...] = formulas.evaluate(jnp, kind, branch, v_ref[...], x_ref[...])


_function = differentiable(_launch)
