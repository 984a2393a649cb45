"""Triton: one elementwise kernel in float64 for the four functions, forward and backward; a program takes BLOCK points.

The mathematics is that of ``formulas``. Series of different length are one Horner scheme in which each point starts where
its own series does; the fallback, by far the dearest branch, runs only in programs that have a point for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from common.ops import Shipped

from . import branches
from .branches import LOG_I, LOG_K, RATIO_I, RATIO_K
from .torch_impl import Evaluate, apply

# The interpreter knows no constant to the left of a tensor: below, they stand to its right.

BLOCK, WARPS = 256, 4

_U, _G = tl.constexpr(branches.U), tl.constexpr(branches.G)
_EVEN, _ODD = tl.constexpr(branches.RECIPROCAL_GAMMA[::2]), tl.constexpr(branches.RECIPROCAL_GAMMA[1::2])
_MU, _UNIFORM, _TERMS = tl.constexpr(branches.MU), tl.constexpr(branches.UNIFORM), tl.constexpr(branches.TERMS)
_FALLBACK, _FALLBACK_X, _ORDERS = (tl.constexpr(each) for each in (branches.FALLBACK, branches.FALLBACK_X, branches.ORDERS))
_SERIES, _TEMME, _STEED = (tl.constexpr(each) for each in (branches.SERIES, branches.TEMME, branches.STEED))
_DESCENT, _FAR, _SMALL = (tl.constexpr(each) for each in (branches.DESCENT, branches.RATIO_FAR**2, branches.TEMME_UP_TO))
_LOG_I, _LOG_K, _RATIO_I, _RATIO_K = (tl.constexpr(each) for each in (LOG_I, LOG_K, RATIO_I, RATIO_K))
_HUGE, _DOWN, _UP = tl.constexpr(2.0**500), tl.constexpr(2.0**-600), tl.constexpr(2.0**600)


def log_bessel_i(
    order: Float[Tensor, "*order"], x: Float[Tensor, "*x"], *, branch: str | None = None, variant: str | None = None
) -> Float[Tensor, "*out"]:
    """log I_v(x)."""
    return apply(_checked(variant), LOG_I, branch, order, x)


def log_bessel_k(
    order: Float[Tensor, "*order"], x: Float[Tensor, "*x"], *, branch: str | None = None, variant: str | None = None
) -> Float[Tensor, "*out"]:
    """log K_v(x)."""
    return apply(_checked(variant), LOG_K, branch, order, x)


def bessel_ratio(order: Float[Tensor, "*order"], x: Float[Tensor, "*x"], *, variant: str | None = None) -> Float[Tensor, "*out"]:
    """I_(v+1)(x) / I_v(x)."""
    return apply(_checked(variant), RATIO_I, None, order, x)


def shipped() -> Iterator[Shipped]:
    """The kernel for each function."""
    signature = {"v_ptr": "*fp64", "x_ptr": "*fp64", "out_ptr": "*fp64", "n": "i32", "branch": "i32"}
    signature |= {"KIND": "constexpr", "BLOCK": "constexpr"}
    for name, kind in (("log_i", LOG_I), ("log_k", LOG_K), ("ratio_i", RATIO_I), ("ratio_k", RATIO_K)):
        yield Shipped(name, _kernel, signature, {"KIND": kind, "BLOCK": BLOCK}, {"num_warps": WARPS, "num_stages": 1})


def _checked(variant: str | None) -> Evaluate:
    if variant not in (None, "masked"):
        raise ValueError(f"log_bessel: backend 'triton' has one variant, 'masked', got {variant!r}")
    return _launch


def _launch(kind: int, branch: int | None, v: Tensor, x: Tensor) -> Tensor:
    v, x = v.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), BLOCK),)
        forced = -1 if branch is None else branch
        _kernel[grid](v, x, out, x.numel(), forced, KIND=kind, BLOCK=BLOCK, num_warps=WARPS, num_stages=1)
    return out


@triton.jit
@no_type_check
def _kernel(v_ptr, x_ptr, out_ptr, n, branch, KIND: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    order = tl.load(v_ptr + at, mask=at < n, other=20.0)
    argument = tl.load(x_ptr + at, mask=at < n, other=20.0)
    infinity = float("inf")
    valid = (order >= 0) & (order < infinity) & (argument > 0) & (argument < infinity)
    # Points at the edges compute something harmless.
    v, x = tl.where(valid, order, 20.0), tl.where(valid, argument, 20.0)
    if KIND == _RATIO_I:
        value = _ratio_i(v, x)
    elif KIND == _RATIO_K:
        value = _ratio_k(v, x)
    else:
        value = _logarithm(v, x, branch, KIND)
    if KIND == _LOG_I:
        origin, end = tl.where(order == 0, 0.0, -infinity), infinity
    elif KIND == _LOG_K:
        origin, end = infinity, -infinity
    elif KIND == _RATIO_I:
        origin, end = 0.0, 1.0
    else:
        origin, end = infinity, 1.0
    value = tl.where(argument == 0, origin, tl.where(argument == infinity, end, value))
    value = tl.where((order >= 0) & (order < infinity) & (argument >= 0), value, float("nan"))
    tl.store(out_ptr + at, value, mask=at < n)


@triton.jit
@no_type_check
def _logarithm(v, x, branch, KIND: tl.constexpr):
    chosen = tl.where(branch < 0, _which(v, x), branch)
    near, large = chosen == _FALLBACK, chosen < 2
    terms = tl.where(chosen == 2, _TERMS[2], tl.where(chosen == 3, _TERMS[3], tl.where(chosen == 4, _TERMS[4], _TERMS[5])))
    value = _uniform(tl.where(near, 20.0, v), x, terms, KIND)
    hankel = _hankel(v, tl.where(large, x, 50.0), tl.where(chosen == 0, _TERMS[0], _TERMS[1]), KIND)
    value = tl.where(large, hankel, value)
    if tl.max(near.to(tl.int32), 0) > 0:
        inner, argument = tl.where(near, v, 1.0), tl.where(near, x, 1.0)
        if KIND == _LOG_I:
            fallback = _fallback_i(inner, argument)
        else:
            fallback, _ = _fallback_k(inner, argument)
        value = tl.where(near, fallback, value)
    return value


@triton.jit
@no_type_check
def _ratio_i(v, x):
    far = v * v + x * x > _FAR
    value = x
    if tl.max(far.to(tl.int32), 0) > 0:
        r, q = _radius(tl.where(far, v, 30.0), x)
        value = x * (1 / (r + v) - _correction(r, q, 1.0))
    if tl.min(far.to(tl.int32), 0) == 0:
        value = tl.where(far, value, _descend(v, tl.where(far, 1.0, x)))
    return value


@triton.jit
@no_type_check
def _ratio_k(v, x):
    near = _which(v, x) == _FALLBACK
    r, q = _radius(tl.where(near, 30.0, v), x)
    value = (r + v) / x + x * _correction(r, q, -1.0)
    if tl.max(near.to(tl.int32), 0) > 0:
        _, fallback = _fallback_k(tl.where(near, v, 1.0), tl.where(near, x, 1.0))
        value = tl.where(near, fallback, value)
    return value


@triton.jit
@no_type_check
def _which(v, x):
    chosen = tl.full(x.shape, _FALLBACK, tl.int32)
    for k in tl.static_range(3, -1, -1):
        chosen = tl.where(((x > _UNIFORM[k][0]) & (v > _UNIFORM[k][1])) | (v > _UNIFORM[k][2]), 2 + k, chosen)
    for k in tl.static_range(1, -1, -1):
        chosen = tl.where((x > _MU[k][0]) & (v < _MU[k][1]), k, chosen)
    return chosen


@triton.jit
@no_type_check
def _hankel(v, x, terms, KIND: tl.constexpr):
    sign: tl.constexpr = 1.0 if KIND == _LOG_I else -1.0
    m, y = 4 * v * v, -sign * 0.125 / x
    series = x * 0 + 1
    for i in range(_TERMS[1]):
        j = _TERMS[1] - i
        odd = 2 * j - 1
        series = tl.where(terms >= j, 1 + (m - odd * odd) * (y / j) * series, series)
    return sign * x + tl.log(series * _front(x, KIND))


@triton.jit
@no_type_check
def _uniform(v, x, terms, KIND: tl.constexpr):
    sign: tl.constexpr = 1.0 if KIND == _LOG_I else -1.0
    r, q = _radius(v, x)
    w = sign / r
    series = x * 0
    for k in tl.static_range(13, 0, -1):
        inner = q * 0 + _U[k - 1][k]
        for c in tl.static_range(k):
            inner = q * inner + _U[k - 1][k - 1 - c]
        series = tl.where(terms >= k, w * (inner + series), series)
    return sign * (r + v * tl.log(x / (v + r))) + tl.log((1 + series) * _front(r, KIND))


@triton.jit
@no_type_check
def _correction(r, q, SIGN: tl.constexpr):
    """sum_j SIGN^j G_j(q) / r^(j+2)."""
    w = 1 / r
    series = r * 0
    for k in tl.static_range(12, -1, -1):
        inner = q * 0 + _G[k][k]
        for c in tl.static_range(k):
            inner = q * inner + _G[k][k - 1 - c]
        series = inner + w * series * SIGN
    return series * (w * w)


@triton.jit
@no_type_check
def _descend(v, x):
    square, top = x * x, v + _DESCENT
    s = square / (top + 0.5 + tl.sqrt((top + 1.5) * (top + 1.5) + square))
    for i in range(_DESCENT - 1):
        s = square / (2 * (v + (_DESCENT - i)) + s)
    return x / (2 * (v + 1) + s)


@triton.jit
@no_type_check
def _fallback_i(v, x):
    square, series = 0.25 * x * x, x * 0
    for i in range(_SERIES):
        k = _SERIES - i
        series = square / ((v + k) * k) * (1 + series)
    n = tl.floor(v + 0.5)
    mu = v - n
    even, odd = _reciprocal_gamma(mu)
    product = x * 0 + 1
    for i in range(_ORDERS):
        product = product * tl.where(i + 1 <= n, mu + (i + 1), 1.0)
    # log(1 + series) with the rounding of the sum put back.
    total = 1 + series
    log_total = tl.log(total) + (series - (total - 1)) / total
    value = v * tl.log(0.5 * x) + tl.log((even + mu * odd) / product) + log_total
    return tl.where((v < _ORDERS + 0.5) & (x <= _FALLBACK_X), value, float("nan"))


@triton.jit
@no_type_check
def _fallback_k(v, x):
    """(log K_v(x), K_(v+1)(x) / K_v(x))."""
    n = tl.floor(v + 0.5)
    mu = v - n
    small = x <= _SMALL
    low, low_s = _temme(mu, tl.where(small, x, 2.0))
    high, high_s = _steed(mu, tl.where(small, 2.0, x))
    s = tl.where(small, low_s, high_s)
    product = x * 0 + 1
    for j in range(_ORDERS):
        active = j < n
        product = tl.where(active, product * s, product)
        s = tl.where(active, x * x / s + 2 * (mu + (j + 1)), s)
    value = tl.where(small, 0.0, -x) + tl.log(tl.where(small, low, high) * product) - n * tl.log(x)
    inside = (v < _ORDERS + 0.5) & (x <= _FALLBACK_X)
    return tl.where(inside, value, float("nan")), tl.where(inside, s / x, float("nan"))


@triton.jit
@no_type_check
def _temme(mu, x):
    even, odd = _reciprocal_gamma(mu)
    plus, minus = even + mu * odd, even - mu * odd
    log_b = tl.log(2 / x)
    e = mu * log_b
    power = tl.exp(e)
    square = e * e
    near = 1 + square / 6 * (1 + square / 20 * (1 + square / 42 * (1 + square / 72 * (1 + square / 110 * (1 + square / 156)))))
    sinhc = tl.where(square < 0.25, near, (power - 1 / power) / tl.where(square < 0.25, 1.0, 2 * e))
    f = (even * sinhc * log_b - odd * 0.5 * (power + 1 / power)) / (plus * minus)
    p, q = 0.5 * power / plus, 0.5 / (power * minus)
    c, total, following, quarter = x * 0 + 1, f, p, 0.25 * x * x
    for i in range(_TEMME):
        k = i + 1
        inverse = 1 / (k * k - mu * mu)
        f = (k * f + p + q) * inverse
        p, q = p * ((k + mu) * inverse), q * ((k - mu) * inverse)
        c = c * (quarter / k)
        total, following = total + c * f, following + c * (p - k * f)
    return total, 2 * following / total


@triton.jit
@no_type_check
def _steed(mu, x):
    first = 0.25 - mu * mu
    d = 0.5 / (1 + x)
    delta, h, before, now, q, total = d, d, x * 0, first, first, 1 + first * d
    for i in range(_STEED):
        k = i + 2
        a, b = -first - k * (k - 1), 2 * x + 2 * k
        following = ((b - 2) * now - before) / k
        before = now * (-a / k)
        now = following
        q = q + now
        d = 1 / (b + a * d)
        delta = (b * d - 1) * delta
        h, total = h + delta, total + q * delta
    return tl.sqrt(1.5707963267948966 / x) / total, mu + x + 0.5 - first * h


@triton.jit
@no_type_check
def _reciprocal_gamma(mu):
    square = mu * mu
    even, odd = square * 0 + _EVEN[8], square * 0 + _ODD[8]
    for i in tl.static_range(8):
        even, odd = square * even + _EVEN[7 - i], square * odd + _ODD[7 - i]
    return even, odd


@triton.jit
@no_type_check
def _radius(v, x):
    """r = sqrt(v^2 + x^2) and (v / r)^2; a power of two keeps the squares in range."""
    huge = (v > _HUGE) | (x > _HUGE)
    a, b = tl.where(huge, v * _DOWN, v), tl.where(huge, x * _DOWN, x)
    square = a * a + b * b
    r = tl.sqrt(square)
    return tl.where(huge, r * _UP, r), a * a / square


@triton.jit
@no_type_check
def _front(r, KIND: tl.constexpr):
    return 1 / tl.sqrt(6.283185307179586 * r) if KIND == _LOG_I else tl.sqrt(1.5707963267948966 / r)
