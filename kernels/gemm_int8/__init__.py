"""Products of 8-bit whole numbers, accumulated in 32 bits, and what follows an accumulation: scales, or a dyadic rescaling
by an integer multiplication and a shift.

Layers that a network quantises all end here: symmetric codes x = S_x q_x and w = S_w q_w give x w' = S_x S_w (q_x q_w').
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int8, Int32

from common.ops import framework, operation, readable

from .dyadic import dyadic

__all__ = ["BITS", "dyadic", "matmul_int8", "matmul_int8_dyadic", "matmul_int8_scaled", "requantise"]

BITS = {4: "int8", 8: "int8", 16: "int16", 32: "int32"}
"""Widths that a result can have, and the dtype that holds them."""

LARGEST_INNER = 2**31 // 128**2 - 1
"""Products of one sum that surely fit into 32 bits."""

_BACKENDS = ("torch", "triton", "jax", "pallas")


@operation(backends=_BACKENDS, exact=True)
def matmul_int8(
    x: Int8[Any, "*rows inner"],
    weight: Int8[Any, "outer inner"],
    bias: Int32[Any, " outer"] | None = None,
    *,
    backend: str | None = None,
) -> Int32[Any, "*rows outer"]:
    """y = x weight' + bias in 32-bit integers, exact.

    Args:
        x, weight: int8; the weight lies as in ``torch.nn.Linear``.
        bias: int32, added in 32 bits.

    Raises:
        TypeError: other dtypes. ValueError: shapes that do not fit, or more than 131071 products in one sum, which could
            leave 32 bits.
    """
    _check("matmul_int8", x, weight, bias)
    return matmul_int8.operation(x, weight, bias, backend=backend)


@operation(backends=_BACKENDS, exact=True)
def matmul_int8_dyadic(
    x: Int8[Any, "*rows inner"],
    weight: Int8[Any, "outer inner"],
    bias: Int32[Any, " outer"] | None,
    multiplier: Int32[Any, " channels"],
    shift: Int32[Any, " channels"],
    *,
    bits: int = 8,
    backend: str | None = None,
) -> Int[Any, "*rows outer"]:
    """:func:`requantise` of :func:`matmul_int8` in one pass: no 32-bit result is kept in memory by the GPU backends.

    y = clamp(floor((x weight' + bias) m 2^-e + 1/2)) to ``bits`` bits, m = multiplier, e = shift, for each output channel or
    one for all.

    Returns:
        int8 for 4 and 8 bits, int16 for 16, int32 for 32.

    Source: Li and Gu, I-ViT (arXiv 2207.01405), section 3.2; Jacob et al. 2018 for the fused rescaling.
    """
    _check("matmul_int8_dyadic", x, weight, bias)
    _check_dyadic("matmul_int8_dyadic", multiplier, shift, weight.shape[0], bits)
    return matmul_int8_dyadic.operation(x, weight, bias, multiplier, shift, bits=bits, backend=backend)


@operation(backends=_BACKENDS)
def matmul_int8_scaled(
    x: Int8[Any, "*rows inner"],
    weight: Int8[Any, "outer inner"],
    x_scale: Float[Any, "*some"],
    weight_scale: Float[Any, " scales"],
    bias: Float[Any, " outer"] | None = None,
    *,
    backend: str | None = None,
) -> Float[Any, "*rows outer"]:
    """y_io = S_x,i S_w,o (x weight')_io + bias_o in float32; the product itself is exact.

    Args:
        x_scale: float32, of shape (1,) for the whole tensor or (*rows, 1) for each row.
        weight_scale: float32, of shape (1,) for the whole tensor or (outer,) for each output channel.
        bias: float32.

    Raises:
        TypeError, ValueError: as :func:`matmul_int8`; a scale that is not float32, of another shape, or not positive (values
            are read on the CPU and outside tracing alone).
    """
    name = "matmul_int8_scaled"
    _check(name, x, weight, None)
    rows = (*x.shape[:-1], 1)
    for what, scale, shapes in (("x_scale", x_scale, ((1,), rows)), ("weight_scale", weight_scale, ((1,), (weight.shape[0],)))):
        _check_dtype(name, what, scale, "float32")
        if tuple(scale.shape) not in shapes:
            raise ValueError(f"{name}: {what} has the shape {tuple(scale.shape)}; wanted {' or '.join(map(str, shapes))}")
        if readable(scale) and not bool((scale > 0).all()):
            raise ValueError(f"{name}: {what} holds a scale that is not above 0 (or NaN); calibrate it")
    if bias is not None:
        _check_dtype(name, "bias", bias, "float32")
    return matmul_int8_scaled.operation(x, weight, x_scale, weight_scale, bias, backend=backend)


@operation(backends=_BACKENDS, exact=True)
def requantise(
    x: Int[Any, "*rows channel"],
    multiplier: Int32[Any, " channels"],
    shift: Int32[Any, " channels"],
    *,
    bits: int = 8,
    backend: str | None = None,
) -> Int[Any, "*rows channel"]:
    """Codes of one scale as codes of another: y = clamp(floor(x m 2^-e + 1/2)), m 2^-e = S_in / S_out.

    The product has up to 62 bits and is exact; halves are rounded up.

    Args:
        x: int8, int16 or int32.
        multiplier, shift: m and e from :func:`dyadic`, int32, one for each entry of the last axis or of shape (1,).
        bits: 4, 8, 16 or 32; codes are clamped to -2^(bits-1) .. 2^(bits-1) - 1.

    Returns:
        int8 for 4 and 8 bits, int16 for 16, int32 for 32.

    Raises:
        TypeError: other dtypes. ValueError: other widths; shapes that do not fit; a shift outside 0..62 (read on the CPU and
            outside tracing alone).

    Source: Li and Gu, I-ViT (arXiv 2207.01405), section 3.2.
    """
    if framework(x) is None or _dtype(x) not in ("int8", "int16", "int32"):
        raise TypeError(f"requantise: x is {getattr(x, 'dtype', type(x).__name__)}; wanted an array of int8, int16 or int32")
    if not x.shape:
        raise ValueError("requantise: x is a single number; wanted at least one axis")
    _check_dyadic("requantise", multiplier, shift, x.shape[-1], bits)
    return requantise.operation(x, multiplier, shift, bits=bits, backend=backend)


def _check(name: str, x: Any, weight: Any, bias: Any) -> None:
    _check_dtype(name, "x", x, "int8")
    _check_dtype(name, "weight", weight, "int8")
    if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}: x of shape {tuple(x.shape)} and weight of shape {tuple(weight.shape)} do not fit; wanted (..., inner) and "
            "(outer, inner)"
        )
    if weight.shape[1] > LARGEST_INNER:
        raise ValueError(f"{name}: sums of {weight.shape[1]} products may leave 32 bits; split them, at most {LARGEST_INNER}")
    if bias is not None:
        _check_dtype(name, "bias", bias, "int32")
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(f"{name}: bias has the shape {tuple(bias.shape)}; wanted ({weight.shape[0]},)")


def _check_dyadic(name: str, multiplier: Any, shift: Any, channels: int, bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"{name}: bits is {bits!r}; wanted one of {', '.join(map(str, BITS))}")
    for what, array in (("multiplier", multiplier), ("shift", shift)):
        _check_dtype(name, what, array, "int32")
        if tuple(array.shape) not in ((1,), (channels,)) or tuple(array.shape) != tuple(multiplier.shape):
            raise ValueError(
                f"{name}: {what} has the shape {tuple(array.shape)}; wanted (1,) or ({channels},), for multiplier and shift alike"
            )
    if readable(shift) and shift.shape[0]:
        least, most = int(np.asarray(shift).min()), int(np.asarray(shift).max())
        if least < 0 or most > 62:
            raise ValueError(f"{name}: shift reaches from {least} to {most}; wanted 0 to 62, as dyadic gives them")


def _check_dtype(name: str, what: str, array: Any, wanted: str) -> None:
    if framework(array) is None or _dtype(array) != wanted:
        raise TypeError(f"{name}: {what} is {getattr(array, 'dtype', type(array).__name__)}; wanted an array of {wanted}")


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]
