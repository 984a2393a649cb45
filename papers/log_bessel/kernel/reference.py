"""The definition: integrals and the power series in 40-digit arithmetic, point by point.

There is no array text of a special function that would not already be one of the approximations under test, so the
oracle is mpmath. Its own ``besseli`` and ``besselk`` sum a hypergeometric series, which takes about x terms; here the
number of nodes does not depend on the arguments. With r = sqrt(v^2 + x^2) and the saddle point a = asinh(v / x)

    K_v(x) = exp(v a) / 2  int_-inf^inf exp(-r cosh s - v (sinh s - s)) ds
    I_v(x) = exp(-v a) / pi  int_0^pi exp(r cos s) cos(v (sin s - s)) ds        up to a relative exp(-2 r)

(DLMF 10.32.9 and 10.32.12, the contour moved through the saddle point); the trapezoid rule converges exponentially on
both. For x <= 60 I_v is its power series (DLMF 10.25.2). The atlas of the tests holds all of them against
``mpmath.besseli`` and ``mpmath.besselk``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import numpy as np
from jaxtyping import Float, Real

DIGITS = 40
SERIES_UP_TO = 60.0


def log_bessel_i(
    order: Real[np.ndarray, "*order"], x: Real[np.ndarray, "*x"], *, branch: str | None = None
) -> Float[np.ndarray, "*out"]:
    """log I_v(x); a forced ``branch`` does not change the value that is right."""
    return _map(lambda v, z: bessel_i(v, z)[0], order, x)


def log_bessel_k(
    order: Real[np.ndarray, "*order"], x: Real[np.ndarray, "*x"], *, branch: str | None = None
) -> Float[np.ndarray, "*out"]:
    """log K_v(x); a forced ``branch`` does not change the value that is right."""
    return _map(lambda v, z: bessel_k(v, z)[0], order, x)


def bessel_ratio(order: Real[np.ndarray, "*order"], x: Real[np.ndarray, "*x"]) -> Float[np.ndarray, "*out"]:
    """I_(v+1)(x) / I_v(x)."""
    return _map(lambda v, z: bessel_i(v, z)[1], order, x)


def vjp_log_bessel_i(arguments: Mapping[str, Any], cotangents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """d log I_v / dx = v / x + I_(v+1) / I_v, times the cotangent."""
    return _pull(lambda v, z: v / mpmath.mpf(z) + bessel_i(v, z)[1] if v else bessel_i(v, z)[1], np.inf, arguments, cotangents)


def vjp_log_bessel_k(arguments: Mapping[str, Any], cotangents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """d log K_v / dx = v / x - K_(v+1) / K_v, times the cotangent."""
    return _pull(lambda v, z: v / mpmath.mpf(z) - bessel_k(v, z)[1], -np.inf, arguments, cotangents)


def vjp_bessel_ratio(arguments: Mapping[str, Any], cotangents: list[np.ndarray]) -> dict[str, np.ndarray]:
    """d/dx of R = I_(v+1) / I_v is 1 - R^2 - (2 v + 1) R / x, times the cotangent; 1 / (2 v + 2) at x = 0."""

    def slope(v: float, z: float) -> Any:
        if z == 0:
            return 1 / (2 * mpmath.mpf(v) + 2)
        ratio = bessel_i(v, z)[1]
        return 1 - ratio**2 - (2 * mpmath.mpf(v) + 1) * ratio / mpmath.mpf(z)

    return _pull(slope, None, arguments, cotangents)


@functools.lru_cache(maxsize=200_000)
def bessel_i(order: float, x: float) -> tuple[Any, Any]:
    """(log I_v(x), I_(v+1)(x) / I_v(x)) as mpmath numbers."""
    with mpmath.workdps(DIGITS + 10):
        v, z = mpmath.mpf(order), mpmath.mpf(x)
        if z == 0:
            return (mpmath.mpf(0) if v == 0 else -mpmath.inf), mpmath.mpf(0)
        if z == mpmath.inf:
            return mpmath.inf, mpmath.mpf(1)
        if z <= SERIES_UP_TO:
            series = mpmath.hyp0f1(v + 1, z * z / 4)
            log_value = v * mpmath.log(z / 2) - mpmath.loggamma(v + 1) + mpmath.log(series)
            return log_value, z / (2 * (v + 1)) * mpmath.hyp0f1(v + 2, z * z / 4) / series
        r = mpmath.sqrt(v * v + z * z)
        saddle = mpmath.asinh(v / z)
        step = min(0.3 / math.sqrt(float(r)), 0.05)
        value, following = mpmath.mpf(1) / 2, mpmath.mpf(1) / 2
        for k in range(1, int(math.pi / step) + 1):
            s = mpmath.mpf(k) * step
            cosine, sine = mpmath.cos_sin(s)
            decay = r * (cosine - 1)
            if decay < -2.4 * (DIGITS + 5):
                break
            weight = mpmath.exp(decay)
            phase_cosine, phase_sine = mpmath.cos_sin(v * (sine - s))
            value += weight * phase_cosine
            # I_(v+1) on the same contour has one more factor exp(-(a + i s)).
            following += weight * (phase_cosine * cosine + phase_sine * sine)
        return r - v * saddle + mpmath.log(value * step / mpmath.pi), mpmath.exp(-saddle) * following / value


@functools.lru_cache(maxsize=200_000)
def bessel_k(order: float, x: float) -> tuple[Any, Any]:
    """(log K_v(x), K_(v+1)(x) / K_v(x)) as mpmath numbers."""
    with mpmath.workdps(DIGITS + 10):
        v, z = mpmath.mpf(order), mpmath.mpf(x)
        if z == 0:
            return mpmath.inf, mpmath.inf
        if z == mpmath.inf:
            return -mpmath.inf, mpmath.mpf(1)
        r = mpmath.sqrt(v * v + z * z)
        saddle = mpmath.asinh(v / z)
        step = mpmath.mpf(0.3 / math.sqrt(float(r) + 16))
        value, following = mpmath.mpf(1), mpmath.mpf(1)
        for side in (1, -1):
            ratio, power = mpmath.exp(side * step), mpmath.mpf(1)
            k = 0
            while True:
                k += 1
                power *= ratio
                cosh, sinh = (power + 1 / power) / 2, (power - 1 / power) / 2
                exponent = -r * (cosh - 1) - v * (sinh - side * k * step)
                if exponent + (k * step if side > 0 else 0) < -2.4 * (DIGITS + 5):
                    break
                weight = mpmath.exp(exponent)
                value += weight
                following += weight * power
        return -r + v * saddle + mpmath.log(value * step / 2), mpmath.exp(saddle) * following / value


def _map(function: Callable[[float, float], Any], order: np.ndarray, x: np.ndarray) -> np.ndarray:
    order, x = np.broadcast_arrays(np.asarray(order, np.float64), np.asarray(x, np.float64))
    out = np.empty(x.shape)
    for index in np.ndindex(*x.shape):
        v, z = float(order[index]), float(x[index])
        # A comparison with NaN is false, so one test covers NaN and what is outside the domain.
        out[index] = float(function(v, z)) if 0 <= v < np.inf and z >= 0 else np.nan
    return out


def _pull(
    slope: Callable[[float, float], Any], at_zero: float | None, arguments: Mapping[str, Any], cotangents: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """The gradient of x, summed over the axes that broadcasting added."""
    order, x = np.asarray(arguments["order"], np.float64), np.asarray(arguments["x"], np.float64)

    def safe(v: float, z: float) -> Any:
        if z == 0 and at_zero is not None:
            return 0.0 if v == 0 and at_zero > 0 else at_zero
        return slope(v, z)

    full = _map(safe, order, x) * cotangents[0]
    added = full.ndim - x.ndim
    axes = (*range(added), *(added + axis for axis, length in enumerate(x.shape) if length == 1))
    return {"x": full.sum(axis=axes, keepdims=True).reshape(x.shape) if axes else full}
