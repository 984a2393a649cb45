"""Compaction on the CPU: points are grouped by branch, and only the branch that a point needs is evaluated.

A chunk of points fits the first cache. Its points are counted and listed by branch, gathered in blocks, and each block
goes through its branch in loops over whole blocks, which the compiler turns into vector instructions; chunks run in
parallel. The mathematics is that of ``formulas``; the number of steps of a series follows the hardest point of a block.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from common.threads import in_parts

from .branches import (
    DESCENT,
    FALLBACK,
    FALLBACK_X,
    LOG_I,
    LOG_K,
    MU,
    ORDERS,
    RATIO_FAR,
    RATIO_I,
    RATIO_K,
    RECIPROCAL_GAMMA,
    SERIES,
    STEED,
    TEMME,
    TEMME_UP_TO,
    TERMS,
    UNIFORM,
    G,
    U,
)

CHUNK, BLOCK = 4096, 256
_HUGE, _SCALE = 2.0**500, 2.0**-600

_U, _G, _GAMMA = np.array([c for row in U for c in row]), np.array([c for row in G for c in row]), np.array(RECIPROCAL_GAMMA)
_TERMS, _MU, _UNIFORM = np.array(TERMS), np.array(MU), np.array(UNIFORM)
# Groups: the seven branches; then the fallback's arguments up to 2 (Temme), and up to 6, where Steed's fraction is slow.
_SMALL, _MIDDLE, _GROUPS, _MIDDLE_UP_TO, _STEED_FAR = 7, 8, 9, 6.0, 36


def evaluate(kind: int, branch: int, order: np.ndarray, x: np.ndarray, threads: int) -> np.ndarray:
    """One of the four functions for float64 arrays of one shape; ``branch`` -1 lets each point choose."""
    v, z = np.ascontiguousarray(order).reshape(-1), np.ascontiguousarray(x).reshape(-1)
    out = np.empty(z.shape)
    # Two chunks for each thread at least, and no more than eight parts for each, so that they end together.
    parts = min(8 * threads, -(-z.size // (2 * CHUNK))) if threads > 1 else 1

    def piece(first: int, last: int) -> None:
        part = slice(CHUNK * first, CHUNK * last)
        _serial(kind, branch, v[part], z[part], out[part])

    in_parts(piece, -(-z.size // CHUNK), parts, threads)
    return out.reshape(x.shape)


@njit(cache=True, nogil=True)
@no_type_check
def _serial(kind, branch, v, x, out):
    for start in range(0, x.size, CHUNK):
        _chunk(kind, branch, v[start : start + CHUNK], x[start : start + CHUNK], out[start : start + CHUNK])


@njit(cache=True)
@no_type_check
def _chunk(kind, branch, v, x, out):
    n = x.size
    group = np.empty(n, np.int8)
    for i in range(n):
        group[i] = _group(kind, branch, v[i], x[i])
    start = np.zeros(_GROUPS + 1, np.int64)
    for i in range(n):
        start[group[i] + 1] += 1
    for g in range(_GROUPS):
        start[g + 1] += start[g]
    place, listed = start[:-1].copy(), np.empty(n, np.int64)
    for i in range(n):
        listed[place[group[i]]] = i
        place[group[i]] += 1
    scratch = np.empty((16, BLOCK))
    a, b, o = scratch[13], scratch[14], scratch[15]
    for g in range(_GROUPS):
        for first in range(start[g], start[g + 1], BLOCK):
            m = min(BLOCK, start[g + 1] - first)
            for i in range(m):
                a[i], b[i] = v[listed[first + i]], x[listed[first + i]]
            _block(kind, g, a, b, o, scratch, m)
            for i in range(m):
                out[listed[first + i]] = _edge(kind, a[i], b[i], o[i])


@njit(cache=True, inline="always")
@no_type_check
def _group(kind, forced, v, x):
    branch = FALLBACK
    if kind == RATIO_I:
        return 0 if v * v + x * x > RATIO_FAR * RATIO_FAR else FALLBACK
    if forced >= 0:
        branch = forced
    else:
        for k in range(3, -1, -1):
            if (x > _UNIFORM[k, 0] and v > _UNIFORM[k, 1]) or v > _UNIFORM[k, 2]:
                branch = 2 + k
        for k in range(1, -1, -1):
            if x > _MU[k, 0] and v < _MU[k, 1]:
                branch = k
    if branch != FALLBACK:
        return 0 if kind == RATIO_K else branch
    if kind == LOG_I or x > _MIDDLE_UP_TO:
        return FALLBACK
    return _SMALL if x <= TEMME_UP_TO else _MIDDLE


@njit(cache=True, inline="always")
@no_type_check
def _edge(kind, v, x, value):
    """What holds at x = 0; NaN for what is NaN, negative, or beyond a forced fallback."""
    if not (v >= 0 and v < np.inf and x >= 0):
        return np.nan
    if x == np.inf:
        return (np.inf if kind == LOG_I else -np.inf) if kind <= LOG_K else 1.0
    if x == 0:
        if kind == LOG_I:
            return 0.0 if v == 0 else -np.inf
        return 0.0 if kind == RATIO_I else np.inf
    return value


@njit(cache=True)
@no_type_check
def _block(kind, group, v, x, out, s, m):
    if group >= FALLBACK:
        if kind == RATIO_I:
            _descend(v, x, out, s, m)
        elif kind == LOG_I:
            _fallback_i(v, x, out, s, m)
        else:
            _fallback_k(kind, group, v, x, out, s, m)
    elif kind >= RATIO_I:
        _uniform_ratio(kind, v, x, out, s, m)
    elif group < 2:
        _hankel(kind, v, x, out, s, m, _TERMS[group])
    else:
        _uniform(kind, v, x, out, s, m, _TERMS[group])


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _hankel(kind, v, x, out, s, m, terms):
    series, four, y = s[0], s[1], s[2]
    sign = -1.0 if kind == LOG_I else 1.0
    for i in range(m):
        series[i], four[i], y[i] = 1.0, 4 * v[i] * v[i], sign * 0.125 / x[i]
    for j in range(terms, 0, -1):
        square, inverse = float((2 * j - 1) ** 2), 1.0 / j
        for i in range(m):
            series[i] = 1 + (four[i] - square) * (y[i] * inverse) * series[i]
    for i in range(m):
        out[i] = -sign * x[i] + _log(series[i] * _front(kind, x[i]))


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _uniform(kind, v, x, out, s, m, terms):
    r, w, q, series, inner = s[0], s[1], s[2], s[3], s[4]
    sign = 1.0 if kind == LOG_I else -1.0
    for i in range(m):
        r[i], q[i] = _radius(v[i], x[i])
        w[i], series[i] = sign / r[i], 0.0
    end = (terms + 1) * (terms + 2) // 2 - 1
    for k in range(terms, 0, -1):
        end = _polynomial(_U, end, k, q, inner, m)
        for i in range(m):
            series[i] = w[i] * (inner[i] + series[i])
    for i in range(m):
        exponent = r[i] + v[i] * _log(x[i] / (v[i] + r[i]))
        out[i] = sign * exponent + _log((1 + series[i]) * _front(kind, r[i]))


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _uniform_ratio(kind, v, x, out, s, m):
    r, w, q, series, inner = s[0], s[1], s[2], s[3], s[4]
    sign = 1.0 if kind == RATIO_I else -1.0
    for i in range(m):
        r[i], q[i] = _radius(v[i], x[i])
        w[i], series[i] = sign / r[i], 0.0
    end, terms = _G.size, TERMS[5]
    for k in range(terms - 1, -1, -1):
        end = _polynomial(_G, end, k, q, inner, m)
        for i in range(m):
            series[i] = inner[i] + w[i] * series[i]
    for i in range(m):
        correction = series[i] * (w[i] * w[i])
        out[i] = x[i] * (1 / (r[i] + v[i]) - correction) if kind == RATIO_I else (r[i] + v[i]) / x[i] + x[i] * correction


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _fallback_i(v, x, out, s, m):
    square, series, reciprocal, product = s[0], s[1], s[2], s[3]
    largest, orders = 0.0, 0.0
    for i in range(m):
        square[i], series[i] = 0.25 * x[i] * x[i], 0.0
        largest, orders = max(largest, x[i]), max(orders, v[i])
    for k in range(min(SERIES, int(1.05 * largest) + 14), 0, -1):
        for i in range(m):
            series[i] = square[i] / (k * (k + v[i])) * (1 + series[i])
    for i in range(m):
        mu = v[i] - math.floor(v[i] + 0.5)
        even, odd = _reciprocal_gamma(mu)
        reciprocal[i], product[i] = even + mu * odd, 1.0
    for j in range(1, min(ORDERS, int(orders + 0.5)) + 1):
        for i in range(m):
            n = math.floor(v[i] + 0.5)
            product[i] *= v[i] - n + j if j <= n else 1.0
    for i in range(m):
        value = v[i] * _log(0.5 * x[i]) + _log(reciprocal[i] / product[i]) + _log_one_plus(series[i])
        out[i] = value if v[i] < ORDERS + 0.5 and x[i] <= FALLBACK_X else np.nan


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _fallback_k(kind, group, v, x, out, s, m):
    mu, value, ratio, product = s[0], s[1], s[2], s[3]
    orders = 0.0
    for i in range(m):
        mu[i], product[i] = v[i] - math.floor(v[i] + 0.5), 1.0
        orders = max(orders, v[i])
    if group == _SMALL:
        _temme(mu, x, value, ratio, s, m)
    else:
        _steed(mu, x, value, ratio, s, m, STEED if group == _MIDDLE else _STEED_FAR)
    for j in range(min(ORDERS, int(orders + 0.5))):
        for i in range(m):
            active = mu[i] + j + 0.5 < v[i]
            product[i] *= ratio[i] if active else 1.0
            ratio[i] = x[i] * x[i] / ratio[i] + 2 * (mu[i] + (j + 1)) if active else ratio[i]
    decay = 0.0 if group == _SMALL else 1.0
    for i in range(m):
        result = -decay * x[i] + _log(value[i] * product[i]) - (v[i] - mu[i]) * _log(x[i]) if kind == LOG_K else ratio[i] / x[i]
        out[i] = result if v[i] < ORDERS + 0.5 and x[i] <= FALLBACK_X else np.nan


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _temme(mu, x, value, ratio, s, m):
    f, p, q, c, following = s[4], s[5], s[6], s[7], s[8]
    for i in range(m):
        even, odd = _reciprocal_gamma(mu[i])
        plus, minus = even + mu[i] * odd, even - mu[i] * odd
        log_b = math.log(2 / x[i]) if x[i] > 0 else 0.0
        e = mu[i] * log_b
        power, square = math.exp(e), e * e
        sinhc = (power - 1 / power) / (2 * e) if square >= 0.25 else _sinhc(square)
        f[i] = (even * sinhc * log_b - odd * 0.5 * (power + 1 / power)) / (plus * minus)
        p[i], q[i], c[i] = 0.5 * power / plus, 0.5 / (power * minus), 1.0
        value[i], following[i] = f[i], p[i]
    for k in range(1, TEMME + 1):
        for i in range(m):
            inverse = 1 / (k * k - mu[i] * mu[i])
            f[i] = (k * f[i] + p[i] + q[i]) * inverse
            p[i] *= (k + mu[i]) * inverse
            q[i] *= (k - mu[i]) * inverse
            c[i] *= 0.25 * x[i] * x[i] / k
            value[i] += c[i] * f[i]
            following[i] += c[i] * (p[i] - k * f[i])
    for i in range(m):
        ratio[i] = 2 * following[i] / value[i]


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _steed(mu, x, value, ratio, s, m, steps):
    d, delta, h, before, now, q, total = s[4], s[5], s[6], s[7], s[8], s[9], s[10]
    for i in range(m):
        first = 0.25 - mu[i] * mu[i]
        d[i] = 0.5 / (1 + x[i])
        delta[i], h[i], before[i], now[i], q[i], total[i] = d[i], d[i], 0.0, first, first, 1 + first * d[i]
    for k in range(2, steps + 2):
        inverse = 1.0 / k
        for i in range(m):
            a = mu[i] * mu[i] - 0.25 - k * (k - 1)
            b = 2 * x[i] + 2 * (k - 1)
            following = (b * now[i] - before[i]) * inverse
            before[i] = -a * inverse * now[i]
            now[i] = following
            q[i] += following
            b += 2
            d[i] = 1 / (b + a * d[i])
            delta[i] *= b * d[i] - 1
            h[i] += delta[i]
            total[i] += q[i] * delta[i]
    for i in range(m):
        value[i] = math.sqrt(0.5 * math.pi / x[i]) / total[i]
        ratio[i] = mu[i] + x[i] + 0.5 - (0.25 - mu[i] * mu[i]) * h[i]


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _descend(v, x, out, s, m):
    square, ratio = s[0], s[1]
    for i in range(m):
        square[i], top = x[i] * x[i], v[i] + DESCENT
        ratio[i] = square[i] / (top + 0.5 + math.sqrt((top + 1.5) * (top + 1.5) + square[i]))
    for k in range(DESCENT, 1, -1):
        for i in range(m):
            ratio[i] = square[i] / (2 * (v[i] + k) + ratio[i])
    for i in range(m):
        out[i] = x[i] / (2 * (v[i] + 1) + ratio[i])


@njit(cache=True, fastmath={"contract"})
@no_type_check
def _polynomial(table, end, degree, q, out, m):
    """The polynomial whose coefficients end before ``end``, for a block; where they begin."""
    for i in range(m):
        out[i] = table[end - 1]
    for c in range(end - 2, end - degree - 2, -1):
        for i in range(m):
            out[i] = table[c] + q[i] * out[i]
    return end - degree - 1


@njit(cache=True, inline="always", fastmath={"contract"})
@no_type_check
def _reciprocal_gamma(mu):
    square, even, odd = mu * mu, 0.0, 0.0
    for k in range(_GAMMA.size - 2, -1, -2):
        even, odd = _GAMMA[k] + square * even, _GAMMA[k + 1] + square * odd
    return even, odd


@njit(cache=True, inline="always", fastmath={"contract"})
@no_type_check
def _sinhc(square):
    return 1 + square / 6 * (1 + square / 20 * (1 + square / 42 * (1 + square / 72 * (1 + square / 110 * (1 + square / 156)))))


@njit(cache=True, inline="always", fastmath={"contract"})
@no_type_check
def _radius(v, x):
    """r = sqrt(v^2 + x^2) and (v / r)^2; a power of two keeps the squares in range."""
    huge = v > _HUGE or x > _HUGE
    a, b = v * _SCALE if huge else v, x * _SCALE if huge else x
    square = a * a + b * b
    r = math.sqrt(square)
    return r / _SCALE if huge else r, a * a / square


@njit(cache=True, inline="always")
@no_type_check
def _front(kind, r):
    return math.sqrt(0.5 * math.pi / r) if kind == LOG_K else 1 / math.sqrt(2 * math.pi * r)


@njit(cache=True, inline="always")
@no_type_check
def _log_one_plus(t):
    """log(1 + t) for t >= 0: the rounding of 1 + t is put back."""
    u = 1 + t
    return _log(u) + (t - (u - 1)) / u


@njit(cache=True, inline="always", fastmath={"contract"})
@no_type_check
def _log(x):
    """log x within one unit in the last place, without a branch, so that loops over it become vector code.

    x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt 2); with s = f / (2 + f), log(1 + f) = 2 atanh s = f - f^2 / 2 +
    s (f^2 / 2 + R), R = 2 s^2 / 3 + 2 s^4 / 5 + ...
    """
    tiny = x < 2.3e-308
    bits = _bits(x * 18014398509481984.0 if tiny else x)
    shifted = bits - np.int64(0x3FE6A09E667F3BCD)
    k = float(shifted >> np.int64(52)) - (54.0 if tiny else 0.0)
    f = _float(bits - (shifted & np.int64(-(1 << 52)))) - 1.0
    s = f / (2.0 + f)
    z = s * s
    rest = z * (
        2 / 3
        + z
        * (
            2 / 5
            + z * (2 / 7 + z * (2 / 9 + z * (2 / 11 + z * (2 / 13 + z * (2 / 15 + z * (2 / 17 + z * (2 / 19 + z * (2 / 21))))))))
        )
    )
    half = 0.5 * f * f
    # log 2 in two pieces, the first with trailing zeros, so that k times it is exact.
    value = k * 6.93147180369123816490e-01 - ((half - (s * (half + rest) + k * 1.90821492927058770002e-10)) - f)
    return value if x > 0 else (-np.inf if x == 0 else np.nan)


@intrinsic
def _bits(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@intrinsic
def _float(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate
