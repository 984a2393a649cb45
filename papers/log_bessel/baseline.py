"""What a user would write without the paper: logarithms of SciPy's scaled functions, their quotient, a fit with each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ive, kve

Array = Float[np.ndarray, "*points"]
Real = Float[Any, "*points"] | float


def log_i(order: Real, x: Real) -> Real:
    """log(ive) + x: -inf where I_v(x) exp(-x) is below the smallest float."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(ive(order, x)) + x


def log_k(order: Real, x: Real) -> Real:
    """log(kve) - x: inf where K_v(x) exp(x) is above the largest float."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.log(kve(order, x)) - x


def ratio(order: Real, x: Real) -> Real:
    """I_(v+1) / I_v as exp of the difference of the logarithms."""
    with np.errstate(invalid="ignore"):
        return np.exp(log_i(order + 1, x) - log_i(order, x))


def slope_i(order: Array, x: Array) -> Array:
    """d log I_v / dx by this ratio."""
    return order / x + ratio(order, x)


def slope_k(order: Array, x: Array) -> Array:
    """d log K_v / dx by the like of it."""
    with np.errstate(invalid="ignore", over="ignore"):
        return order / x - np.exp(log_k(order + 1, x) - log_k(order, x))


def fit(dim: int, resultant: float, ratio: Callable[[float, float], Any] = ratio, steps: int = 8) -> float:
    """kappa with A_p(kappa) = R by Newton's method on any ratio; NaN where the ratio is."""
    kappa = resultant * (dim - resultant**2) / (1 - resultant**2)
    for _ in range(steps):
        a = ratio(dim / 2 - 1, kappa)
        kappa -= float((a - resultant) / (1 - a**2 - (dim - 1) * a / kappa))
    return kappa


def scipy_fit(rows: Float[np.ndarray, "n dim"]) -> float:
    """kappa by ``scipy.stats.vonmises_fisher.fit``, whatever it returns; NaN where it raises."""
    from scipy.stats import vonmises_fisher

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(vonmises_fisher.fit(rows)[1])
        except (ValueError, RuntimeError, FloatingPointError):
            return float("nan")


def mpmath_ratio(order: float, x: float) -> Any:
    """I_(v+1) / I_v by ``mpmath.besseli`` at its usual 15 digits."""
    import mpmath

    return mpmath.besseli(order + 1, x) / mpmath.besseli(order, x)


def mpmath_fit(dim: int, resultant: float) -> float:
    """kappa by Newton's method on :func:`mpmath_ratio`; NaN where mpmath gives up on its series."""
    import mpmath

    try:
        return fit(dim, resultant, mpmath_ratio)
    except (mpmath.mp.NoConvergence, ZeroDivisionError):
        return float("nan")


def mpmath_log(name: str, order: Array, x: Array) -> list[float]:
    """log of ``mpmath.besseli`` or ``besselk`` at 15 digits, point by point; NaN where mpmath gives up on its series."""
    import mpmath

    def value(v: float, z: float) -> float:
        try:
            return float(mpmath.log(getattr(mpmath, name)(v, z)))
        except mpmath.mp.NoConvergence:
            return float("nan")

    return [value(*pair) for pair in zip(order.tolist(), x.tolist(), strict=True)]
