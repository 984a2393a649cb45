"""Whole numbers in floating point with straight-through gradients, for any array: PyTorch, JAX and NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from common.ops import framework


def shift_exp(x: Any, unit: Any, n: int) -> Any:
    """exp(S x) in steps of S 2^-n, for whole x <= 0; its gradient is that of 2^-(x'/unit)."""
    xp = array_namespace(x)
    x = x + floored(x / 2) - floored(x / 16)
    least = -n * unit + xp.zeros_like(x)
    x = xp.where(x > least, x, least)
    q = floored(x / -unit)
    return floored(((x + q * unit) / 2 + unit) * power_of_two(n - q))


def dyadic_parts(ratio: Any) -> tuple[Any, Any]:
    """m and e of :func:`kernels.gemm_int8.dyadic`, as floating-point arrays."""
    kind, xp = framework(ratio), array_namespace(ratio)
    if kind == "torch":
        import torch

        fraction, power = torch.frexp(ratio)
    elif kind == "jax":
        import jax.numpy as jnp

        fraction, power = jnp.frexp(ratio)
    else:
        fraction, power = np.frexp(ratio)
    m, e = xp.floor(fraction * 2.0**31 + 0.5), 31 - xp.astype(power, ratio.dtype)
    full = xp.abs(m) == 2.0**31
    m, e = xp.where(full, m / 2, m), xp.where(full, e - 1, e)
    # Below 2^-62 the factor is shorter, and at last 0.
    nought, most = xp.zeros_like(e), xp.full_like(e, 62.0)
    excess = xp.where(e > 62, xp.where(e > 124, most, e - 62), nought)
    return xp.where(excess > 0, xp.floor(m * power_of_two(-excess) + 0.5), m), xp.where(e > 62, most, e)


def power_of_two(k: Any) -> Any:
    """2^k, exact for whole k up to 62 in magnitude (the exponential of a library may be off by a bit)."""
    xp = array_namespace(k)
    whole = xp.astype(stop(k), xp.int64)
    zero, one = xp.zeros_like(whole), xp.ones_like(whole)
    up = xp.bitwise_left_shift(one, xp.where(whole > 0, whole, zero))
    down = xp.bitwise_left_shift(one, xp.where(whole < 0, -whole, zero))
    exact = xp.astype(up, k.dtype) / xp.astype(down, k.dtype)
    return straight(exact, xp.exp(k * math.log(2))) if learning(k) else exact


def normal_distribution(x: Any) -> Any:
    """(1 + erf(x / sqrt 2)) / 2."""
    kind = framework(x)
    if kind == "torch":
        import torch

        return torch.special.ndtr(x)
    if kind == "jax":
        import jax

        return jax.scipy.special.ndtr(x)
    from scipy.special import ndtr

    return ndtr(x)


def stop(x: Any) -> Any:
    """x without its gradient."""
    kind = framework(x)
    if kind == "torch":
        return x.detach()
    if kind == "jax":
        import jax

        return jax.lax.stop_gradient(x)
    return x


def with_class_token(q: Any) -> Any:
    """A token of zeros before the others; for any array."""
    xp = array_namespace(q)
    return xp.concat([xp.zeros_like(q[:, :1]), q], axis=1)


def straight(exact: Any, smooth: Any) -> Any:
    """The value of one with the gradient of the other; the difference is exactly 0."""
    return stop(exact) + (smooth - stop(smooth)) if learning(smooth) else exact


def learning(x: Any) -> bool:
    """Whether somebody may ask for a gradient of x."""
    kind = framework(x)
    return kind == "jax" or (kind == "torch" and x.requires_grad)


def floored(x: Any) -> Any:
    return straight(array_namespace(x).floor(x), x)


def rounded(x: Any) -> Any:
    return straight(array_namespace(x).floor(x + 0.5), x)


def clipped(q: Any, bits: int) -> Any:
    """The gradient at the ends is 1; of a minimum of equals the frameworks think differently."""
    xp = array_namespace(q)
    low, high = (xp.full_like(q, end) for end in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    return xp.where(q > high, high, xp.where(q < low, low, q))


def times(left: Any, right: Any) -> Any:
    """A product of whole numbers; XLA would multiply in a shorter format unless told."""
    if framework(left) == "jax":
        import jax.numpy as jnp

        return jnp.matmul(left, right, precision="highest")
    return left @ right


def kept(x: Any) -> Any:
    """XLA fuses a chain of steps by making each anew for each use, twice as often in every step, unless it is stopped."""
    if framework(x) == "jax":
        import jax

        return jax.lax.optimization_barrier(x)
    return x


def unit_in_floats(scale: Any) -> Any:
    return -array_namespace(scale).floor(-1.0 / scale)


def wide_sigmoid(first: Any, second: Any) -> Any:
    """The reciprocal has 62 bits, more than float64: in integers."""
    xp = array_namespace(first)
    a, b = (xp.astype(stop(each), xp.int64) for each in (first, second))
    factor = (xp.zeros_like(a) + (2**62 - 1)) // (a + b)
    return xp.astype(xp.bitwise_right_shift(a * factor, xp.full_like(a, 55)), first.dtype)
