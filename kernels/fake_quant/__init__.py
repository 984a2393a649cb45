"""Quantisation that stays in floating point: numbers are rounded to the grid that a few bits can hold, and the gradient goes
straight through the rounding. What quantisation-aware training inserts into a network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common.ops import framework, operation, readable

from .layout import limits, split

__all__ = ["fake_quantize", "limits"]


def _gradients(arguments: dict[str, Any], cotangents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The vector-Jacobian product in NumPy; see :func:`fake_quantize`."""
    x, scale, zero = arguments["x"], arguments["scale"], arguments.get("zero_point")
    outer, channels, inner = split(x.shape, arguments.get("axis"), arguments.get("group"))
    low, high = limits(arguments["bits"], arguments.get("signed", True))
    shift = np.zeros((1, channels, 1)) if zero is None else zero.reshape(1, channels, 1)
    quotient = x.reshape(outer, channels, inner) / scale.reshape(1, channels, 1)
    place = np.clip(np.rint(quotient), low - shift, high - shift)
    inside = np.rint(quotient) == place
    dy = cotangents[0].reshape(outer, channels, inner)
    to_scale = (dy * (place - np.where(inside, quotient, 0))).sum((0, 2)).reshape(scale.shape)
    return {"x": (dy * inside).reshape(x.shape), "scale": to_scale}


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x", "scale"), vjp=_gradients)
def fake_quantize(
    x: Float[Any, "*shape"],
    scale: Float[Any, "*channels"],
    *,
    bits: int,
    axis: int | None = None,
    group: int | None = None,
    zero_point: Int[Any, "*channels"] | None = None,
    signed: bool = True,
    backend: str | None = None,
) -> Float[Any, "*shape"]:
    """y = s (clip(round(x / s) + z, l, h) - z), with l..h the whole numbers of ``bits`` bits; ties go to the even number.

    The gradient passes where the rounded quotient is within the limits, and the step s is learned from

        dL/dx = dL/dy [l <= round(x/s) + z <= h]
        dL/ds = sum dL/dy (round(x/s) - x/s inside, l - z below, h - z above)

    (scale the latter by 1 / sqrt(count h) for LSQ). Arithmetic is float32, float64 for float64; x / s is x (1 / s), as
    torch.fake_quantize_per_channel_affine has it.

    Args:
        x: floating point, any shape.
        scale: positive; () for the whole of x; (x.shape[axis],) with ``axis``; (*x.shape[:-1], x.shape[-1] / group) with
            ``group``. In the dtype of x.
        bits: 2 to 8; l..h is -2^(bits-1)..2^(bits-1)-1, or 0..2^bits-1 if not ``signed``: see :func:`limits`.
        axis: whose entries have a scale each.
        group: numbers along the last axis that share a scale.
        zero_point: int32 in the shape of the scale; None: 0.

    Returns:
        as x.

    Raises:
        ValueError: bits outside 2..8; axis and group at once; a scale of another shape, or not positive (found on the CPU
            and outside tracing alone).
        TypeError: x that is not floating point, scale of another dtype, zero_point that is not int32.

    Source: Jacob et al. (arXiv 1712.05877), section 3; Esser et al., LSQ (arXiv 1902.08153), section 2.1.
    """
    kind = _dtype(x)
    if "float" not in kind:
        raise TypeError(f"fake_quantize: x is {_described(x)}; wanted floating point")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"fake_quantize: bits is {bits!r}; wanted 2 to 8")
    wanted = _scale_shape(x.shape, axis, group)
    if _dtype(scale) != kind or tuple(scale.shape) != wanted:
        kind_of_error = TypeError if framework(scale) is None or _dtype(scale) != kind else ValueError
        raise kind_of_error(f"fake_quantize: scale is {_described(scale)}; wanted {kind} {wanted}")
    if zero_point is not None and (_dtype(zero_point) != "int32" or tuple(zero_point.shape) != wanted):
        raise TypeError(f"fake_quantize: zero_point is {_described(zero_point)}; wanted int32 {wanted}")
    # Written so that NaN fails it.
    if readable(scale) and 0 not in wanted and not bool((scale > 0).all()):
        raise ValueError("fake_quantize: a scale is not positive; give ranges of zero a scale of 1")
    return fake_quantize.operation(
        x, scale, bits=bits, axis=axis, group=group, zero_point=zero_point, signed=signed, backend=backend
    )


def _scale_shape(shape: Any, axis: int | None, group: int | None) -> tuple[int, ...]:
    if axis is not None and group is not None:
        raise ValueError("fake_quantize: both axis and group are given; wanted one of them")
    if group is not None:
        if not shape or group < 1 or shape[-1] % group:
            raise ValueError(f"fake_quantize: groups of {group} do not divide the last axis of {tuple(shape)}")
        return (*tuple(shape)[:-1], shape[-1] // group)
    if axis is None:
        return ()
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"fake_quantize: axis is {axis}; x has {len(shape)} axes")
    return (shape[axis],)


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2] if framework(array) else ""


def _described(array: Any) -> str:
    return f"{_dtype(array)} {tuple(array.shape)}" if framework(array) else f"a {type(array).__name__}"
