"""The expressions of the branches for whole arrays: one text for torch and JAX, whose namespace is the argument ``xp``.

Every function takes floating arrays ``v`` (order) and ``x`` of one shape. ``terms`` is an int, or an array where the
points differ: the same Horner scheme then starts where each point's series starts. Every loop has a fixed length and
is unrolled: XLA then makes one fused pass of it, which a loop of its own would cut into one pass a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .branches import (
    DESCENT,
    FALLBACK,
    FALLBACK_X,
    LOG_I,
    LOG_K,
    ORDERS,
    RATIO_FAR,
    RATIO_I,
    RATIO_K,
    RECIPROCAL_GAMMA,
    SERIES,
    STEED,
    STEED_SINGLE,
    TEMME,
    TEMME_UP_TO,
    TERMS,
    G,
    H,
    U,
    which_branch,
)


def evaluate(xp: Any, kind: int, branch: int | None, v: Any, x: Any) -> Any:
    """One of the four functions everywhere: every branch for every point, then the one that holds."""
    inside = (v >= 0) & (v < xp.inf) & (x > 0) & (x < xp.inf)
    return edges(xp, kind, v, x, _masked(xp, kind, branch, xp.where(inside, v, 1.0), xp.where(inside, x, 1.0)))


def evaluate_branch(xp: Any, kind: int, branch: int, v: Any, x: Any) -> Any:
    """One of the four functions by one branch alone, for points that have been sorted; all series are far, for a ratio."""
    return edges(xp, kind, v, x, _by_branch(xp, kind, branch, v, x))


def _masked(xp: Any, kind: int, branch: int | None, v: Any, x: Any) -> Any:
    if kind == RATIO_I:
        far = v * v + x * x > RATIO_FAR**2
        return xp.where(far, _far_ratio_i(xp, xp.where(far, v, RATIO_FAR), x), _descend(xp, v, xp.where(far, 1.0, x)))
    if kind == RATIO_K:
        far = which_branch(v, x) != FALLBACK
        near = fallback_k(xp, v, xp.where(far, 1.0, x))[1]
        return xp.where(far, _far_ratio_k(xp, xp.where(far, v, RATIO_FAR), x), near)
    if branch is not None:
        return _by_branch(xp, kind, branch, v, x)
    chosen = which_branch(v, x)
    near = chosen == FALLBACK
    # What the unused expressions see must not matter: they get an argument that all of them can do.
    fallback = _by_branch(xp, kind, FALLBACK, xp.where(near, v, 1.0), xp.where(near, x, 1.0))
    v_far, x_far = xp.where(near, 50.0, v), xp.where(near, 50.0, x)
    large = chosen < 2
    terms = xp.where(chosen == 0, TERMS[0], TERMS[1])
    mu = hankel(xp, xp.where(large, v, 1.0), xp.where(large, x, 50.0), terms, _sign(kind))
    terms = xp.where(chosen == 2, TERMS[2], xp.where(chosen == 3, TERMS[3], xp.where(chosen == 4, TERMS[4], TERMS[5])))
    return xp.where(near, fallback, xp.where(large, mu, uniform(xp, v_far, x_far, terms, _sign(kind))))


def _by_branch(xp: Any, kind: int, branch: int, v: Any, x: Any) -> Any:
    near = branch == FALLBACK
    if kind == RATIO_I:
        return _descend(xp, v, x) if near else _far_ratio_i(xp, v, x)
    if kind == RATIO_K:
        return fallback_k(xp, v, x)[1] if near else _far_ratio_k(xp, v, x)
    if near:
        return fallback_i(xp, v, x) if kind == LOG_I else fallback_k(xp, v, x)[0]
    return (hankel if branch < 2 else uniform)(xp, v, x, TERMS[branch], _sign(kind))


def slope(xp: Any, ratio: Callable[[int, Any, Any], Any], kind: int, v: Any, x: Any, value: Any) -> Any:
    """The derivative in x of one of the four functions; ``ratio(kind, v, x)`` is differentiable itself.

    log I: v / x + I_(v+1) / I_v. log K: v / x - K_(v+1) / K_v. The ratios' own slopes, R_v (1 / x + R_(v+1) - R_v) for I
    and R^2 - (2 v + 1) R / x - 1 for K, lose x^2 / v units of rounding to cancellation: far from the origin their
    uniform expansion is differentiated instead, which loses none.
    """
    if kind == LOG_I:
        # v / x only where v > 0: at the origin the limits are 0 for v = 0 and inf for all others.
        return xp.where(v == 0, 0.0, v / xp.where(v == 0, 1.0, x)) + ratio(RATIO_I, v, x)
    away = xp.where(x == 0, 1.0, x)
    if kind == LOG_K:
        return xp.where(x == 0, -xp.inf, v / away - ratio(RATIO_K, v, away))
    far = v * v + x * x > RATIO_FAR**2
    expanded = _far_slope(xp, kind, xp.where(far, v, RATIO_FAR), away)
    if kind == RATIO_I:
        near = value * (1 / away + ratio(RATIO_I, v + 1, away) - value)
        return xp.where(x == 0, 0.5 / (v + 1), xp.where(far, expanded, near))
    near = value * (value - (2 * v + 1) / away) - 1
    return xp.where(x == 0, -xp.inf, xp.where(far, expanded, near))


def hankel(xp: Any, v: Any, x: Any, terms: Any, sign: int) -> Any:
    """mu_K. ``sign`` is that of the exponent: 1 for I, whose terms alternate, -1 for K."""
    m, y = 4 * v * v, -sign * 0.125 / x
    series = xp.ones_like(x)
    for j in range(_most(terms, TERMS[:2]), 0, -1):
        series = _from(xp, j, terms, 1 + (m - (2 * j - 1) ** 2) * (y / j) * series, series)
    return sign * x + xp.log(series * _front(xp, x, sign))


def uniform(xp: Any, v: Any, x: Any, terms: Any, sign: int) -> Any:
    """U_K, in powers of 1 / r with the factor p^k of u_k(p) taken out."""
    r, q = _radius(xp, v, x)
    w = sign / r
    series = xp.zeros_like(x)
    for k in range(_most(terms, TERMS[2:]), 0, -1):
        series = _from(xp, k, terms, w * (_horner(U[k - 1], q) + series), series)
    exponent = r + v * xp.log(x / (v + r))
    return sign * exponent + xp.log((1 + series) * _front(xp, r, sign))


def fallback_i(xp: Any, v: Any, x: Any) -> Any:
    """The power series, its factor 1 / Gamma(v + 1) from orders within 1/2 of 0. Every term is positive."""
    square, series = 0.25 * x * x, xp.zeros_like(x)
    for k in range(SERIES, 0, -1):
        series = square / (k * (k + v)) * (1 + series)
    n, mu = _reduced(xp, v)
    even, odd = _reciprocal_gamma(mu)
    product = xp.ones_like(x)
    for j in range(1, ORDERS + 1):
        product = product * xp.where(j <= n, mu + j, 1.0)
    value = v * xp.log(0.5 * x) + xp.log((even + mu * odd) / product) + xp.log1p(series)
    return _within(xp, v, x, value)


def fallback_k(xp: Any, v: Any, x: Any) -> tuple[Any, Any]:
    """(log K_v(x), K_(v+1)(x) / K_v(x)): Temme's series or Steed's fraction at an order within 1/2 of 0, then upwards.

    K_(v+1) / K_v = s / x, and s(v+1) = x^2 / s(v) + 2 (v + 1) has positive terms: stable, and never out of range.
    """
    n, mu = _reduced(xp, v)
    small = x <= TEMME_UP_TO
    # Each scheme sees only arguments that it can do, so that no unused one makes NaN.
    low, low_s = _temme(xp, mu, xp.where(small, x, TEMME_UP_TO))
    high, high_s = _steed(xp, mu, xp.where(small, TEMME_UP_TO, x))
    s = xp.where(small, low_s, high_s)
    product = xp.ones_like(x)
    for j in range(ORDERS):
        active = j < n
        product = xp.where(active, product * s, product)
        s = xp.where(active, x * x / s + 2 * (mu + (j + 1)), s)
    value = xp.where(small, 0.0, -x) + xp.log(xp.where(small, low, high) * product) - n * xp.log(x)
    return _within(xp, v, x, value), _within(xp, v, x, s / x)


def edges(xp: Any, kind: int, v: Any, x: Any, value: Any) -> Any:
    """The limits at x = 0 and x = inf; NaN for NaN and for what is outside the domain."""
    if kind == LOG_I:
        origin, infinity = xp.where(v == 0, xp.zeros_like(x), -xp.inf), xp.inf
    elif kind == LOG_K:
        origin, infinity = xp.inf, -xp.inf
    else:
        origin, infinity = (0.0 if kind == RATIO_I else xp.inf), 1.0
    value = xp.where(x == 0, origin, xp.where(x == xp.inf, infinity, value))
    return xp.where((v >= 0) & (v < xp.inf) & (x >= 0), value, xp.nan)


def _far_ratio_i(xp: Any, v: Any, x: Any) -> Any:
    r, q = _radius(xp, v, x)
    return x * (1 / (r + v) - _correction(xp, G, r, q, 1))


def _far_ratio_k(xp: Any, v: Any, x: Any) -> Any:
    r, q = _radius(xp, v, x)
    return (r + v) / x + x * _correction(xp, G, r, q, -1)


def _far_slope(xp: Any, kind: int, v: Any, x: Any) -> Any:
    """The derivative of one of these two."""
    r, q = _radius(xp, v, x)
    if kind == RATIO_I:
        return v / r / (r + v) + _correction(xp, H, r, q, 1)
    return -(v / r) * ((r + v) / x) / x - _correction(xp, H, r, q, -1)


def _correction(xp: Any, rows: tuple[tuple[float, ...], ...], r: Any, q: Any, sign: int) -> Any:
    """sum_j sign^j rows[j](q) / r^(j+2)."""
    w = 1 / r
    series = xp.zeros_like(r)
    for row in reversed(rows):
        series = _horner(row, q) + sign * w * series
    return series * (w * w)


def _descend(xp: Any, v: Any, x: Any) -> Any:
    """x I_(k+1) / I_k = x^2 / (2 (k + 1) + x I_(k+2) / I_(k+1)), from k = v + DESCENT down to v; positive terms."""
    square, top = x * x, v + DESCENT
    s = square / (top + 0.5 + xp.sqrt((top + 1.5) * (top + 1.5) + square))
    for k in range(DESCENT, 1, -1):
        s = square / (2 * (v + k) + s)
    return x / (2 * (v + 1) + s)


def _temme(xp: Any, mu: Any, x: Any) -> tuple[Any, Any]:
    """(K_mu(x), x K_(mu+1)(x) / K_mu(x)) for |mu| <= 1/2, 0 < x <= 2 (Temme, J. Comput. Phys. 19, 1975)."""
    even, odd = _reciprocal_gamma(mu)
    plus, minus = even + mu * odd, even - mu * odd
    log_b = xp.log(2 / x)
    e = mu * log_b
    power = xp.exp(e)
    square = e * e
    near = 1 + square / 6 * (1 + square / 20 * (1 + square / 42 * (1 + square / 72 * (1 + square / 110 * (1 + square / 156)))))
    sinhc = xp.where(square < 0.25, near, (power - 1 / power) / xp.where(square < 0.25, 1.0, 2 * e))
    f = (even * sinhc * log_b - odd * 0.5 * (power + 1 / power)) / (plus * minus)
    p, q = 0.5 * power / plus, 0.5 / (power * minus)
    c, total, following = xp.ones_like(x), f, p
    for k in range(1, TEMME + 1):
        inverse = 1 / (k * k - mu * mu)
        f = (k * f + p + q) * inverse
        p, q = p * ((k + mu) * inverse), q * ((k - mu) * inverse)
        c = c * (0.25 / k * x * x)
        total, following = total + c * f, following + c * (p - k * f)
    return total, 2 * following / total


def _steed(xp: Any, mu: Any, x: Any) -> tuple[Any, Any]:
    """(exp(x) K_mu(x), x K_(mu+1)(x) / K_mu(x)) for |mu| <= 1/2, x >= 2 (Thompson and Barnett, 1987, with Temme's sum).

    The sum's two factors, one growing like a factorial, the other falling, are kept as their product: no overflow.
    """
    first = 0.25 - mu * mu
    d = 0.5 / (1 + x)
    delta, h, before, now, q, total = d, d, xp.zeros_like(x), first, first, 1 + first * d
    for k in range(2, (STEED if _is_double(x) else STEED_SINGLE) + 2):
        a, b = -first - k * (k - 1), 2 * x + 2 * k
        before, now = now * (-a / k), ((b - 2) * now - before) / k
        q = q + now
        d = 1 / (b + a * d)
        delta = (b * d - 1) * delta
        h, total = h + delta, total + q * delta
    return xp.sqrt(0.5 * math.pi / x) / total, mu + x + 0.5 - first * h


def _reduced(xp: Any, v: Any) -> tuple[Any, Any]:
    n = xp.floor(v + 0.5)
    return n, v - n


def _reciprocal_gamma(mu: Any) -> tuple[Any, Any]:
    """Even and odd part: 1 / Gamma(1 + mu) = even + mu odd, 1 / Gamma(1 - mu) = even - mu odd."""
    square = mu * mu
    return _horner(RECIPROCAL_GAMMA[::2], square), _horner(RECIPROCAL_GAMMA[1::2], square)


def _sign(kind: int) -> int:
    return 1 if kind == LOG_I else -1


def _radius(xp: Any, v: Any, x: Any) -> tuple[Any, Any]:
    """r = sqrt(v^2 + x^2) and (v / r)^2; a power of two keeps the squares in range."""
    limit, scale = (2.0**500, 2.0**-600) if _is_double(x) else (2.0**60, 2.0**-70)
    huge = (v > limit) | (x > limit)
    a, b = xp.where(huge, v * scale, v), xp.where(huge, x * scale, x)
    square = a * a + b * b
    r = xp.sqrt(square)
    return xp.where(huge, r / scale, r), a * a / square


def _front(xp: Any, r: Any, sign: int) -> Any:
    return 1 / xp.sqrt(2 * math.pi * r) if sign > 0 else xp.sqrt(0.5 * math.pi / r)


def _within(xp: Any, v: Any, x: Any, value: Any) -> Any:
    return xp.where((v < ORDERS + 0.5) & (x <= FALLBACK_X), value, xp.nan)


def _is_double(x: Any) -> bool:
    return str(x.dtype).endswith("float64")


def _most(terms: Any, of: tuple[int, ...]) -> int:
    return terms if isinstance(terms, int) else max(of)


def _from(xp: Any, k: int, terms: Any, value: Any, otherwise: Any) -> Any:
    return value if isinstance(terms, int) else xp.where(k <= terms, value, otherwise)


def _horner(coefficients: tuple[float, ...], t: Any) -> Any:
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = c + t * value
    return value
