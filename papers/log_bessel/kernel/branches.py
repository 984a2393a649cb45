"""The seven branches: where each holds, and the coefficients of their series.

Thresholds: paper, section on the choice of expressions; the first branch whose condition holds is taken. The
polynomials are made once, in exact fractions. With r = sqrt(v^2 + x^2), p = v / r and q = p^2, every u_k(p) of the
uniform expansion (DLMF 10.41.9) is p^k times a polynomial U_k(q) of degree k, so that u_k(p) / v^k = U_k(q) / r^k is
finite at v = 0.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import array_api_compat
from jaxtyping import Int, Real

LOG_I, LOG_K, RATIO_I, RATIO_K = range(4)
"""What is computed: log I_v, log K_v, I_(v+1) / I_v, K_(v+1) / K_v."""

BRANCHES = ("mu_3", "mu_20", "u_4", "u_6", "u_9", "u_13", "fallback")
FALLBACK = BRANCHES.index("fallback")
TERMS = (3, 20, 4, 6, 9, 13, 0)
"""Terms of the series of each branch."""

MU = ((1400.0, 3.05), (30.0, 15.3919))
"""mu_K holds where x > the first and v < the second."""

UNIFORM = ((274.2377, 0.3, 163.6993), (84.4153, 0.46, 56.9971), (35.9074, 0.6, 20.1534), (19.6931, 0.7, 12.6964))
"""U_K holds where x > the first and v > the second, or v > the third."""


def which_branch(order: Real[Any, "*order"], x: Real[Any, "*x"]) -> Int[Any, "*out"]:
    """The index into ``BRANCHES`` of the expression used at (order, x), for arrays of any framework, by broadcasting.

    NaN and what lies outside the quadrant fall through to the last index. Source: arXiv 2409.08729, table of thresholds.
    """
    xp = array_api_compat.array_namespace(order, x)
    holds = [(x > above) & (order < below) for above, below in MU]
    holds += [((x > above) & (order > least)) | (order > alone) for above, least, alone in UNIFORM]
    chosen = xp.where(holds[-1], FALLBACK - 1, FALLBACK)
    for index in reversed(range(FALLBACK - 1)):
        chosen = xp.where(holds[index], index, chosen)
    return chosen


def _uniform(terms: int) -> list[list[Fraction]]:
    """U_1 .. U_terms as coefficients of 1, q, q^2, ..."""
    u = [[Fraction(1)]]
    for k in range(terms):
        # u_k = sum_i c_i p^(k + 2 i); u_(k+1) = p^2 (1 - p^2) u_k' / 2 + (1/8) int_0^p (1 - 5 t^2) u_k(t) dt
        following = [Fraction(0)] * (k + 2)
        for i, c in enumerate(u[k]):
            power = k + 2 * i
            following[i] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            following[i + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        u.append(following)
    return u[1:]


def _ratio(terms: int) -> list[list[Fraction]]:
    """G_0 .. G_(terms-1), the quotient of two series in 1/r: sum_j W_j(q) / r^j = (1 + sum U_k / r^k) sum_j G_j / r^j.

    W_j = (j + 1/2) U_j + 2 q U_j'(q) comes from the expansion of I_v' (DLMF 10.41.11): v_k - u_k has the factor p^2 - 1.
    """
    u = [[Fraction(1)], *_uniform(terms)]
    quotient: list[list[Fraction]] = []
    for j in range(terms):
        row = [c * (Fraction(1, 2) + j + 2 * i) for i, c in enumerate(u[j])]
        for k in range(j):
            for a, left in enumerate(quotient[k]):
                for b, right in enumerate(u[j - k]):
                    row[a + b] -= left * right
        quotient.append(row)
    return quotient


def _slope(terms: int) -> list[list[Fraction]]:
    """H_j = (1 - q) ((j + 2) G_j + 2 q G_j') - G_j, from -d/dx (x G_j(q) / r^(j+2)) with x^2 / r^2 = 1 - q."""
    rows, none = [], Fraction(0)
    for j, row in enumerate(_ratio(terms)):
        inner = [c * (j + 2 + 2 * i) for i, c in enumerate(row)]
        rows.append([a - b - c for a, b, c in zip([*inner, none], [none, *inner], [*row, none], strict=True)])
    return rows


U: tuple[tuple[float, ...], ...] = tuple(tuple(map(float, row)) for row in _uniform(max(TERMS[2:])))
"""U[k - 1] are the coefficients of U_k(q), the lowest first."""

G: tuple[tuple[float, ...], ...] = tuple(tuple(map(float, row)) for row in _ratio(max(TERMS[2:])))
"""I_(v+1) / I_v = x (1 / (r + v) - (1/r^2) sum_j G[j](q) / r^j); K_(v+1) / K_v = (r + v) / x + (x/r^2) sum_j (-1)^j G[j](q) / r^j."""

H: tuple[tuple[float, ...], ...] = tuple(tuple(map(float, row)) for row in _slope(max(TERMS[2:])))
"""The slopes of these two: v / (r (r + v)) + sum_j H[j](q) / r^(j+2), and -v (r + v) / (r x^2) - sum_j (-1)^j H[j](q) / r^(j+2)."""

# The fallback holds for orders below ORDERS + 1/2 and arguments up to about 32; a forced fallback elsewhere is NaN.
ORDERS = 13
FALLBACK_X = 32.0

SERIES = 46
"""Terms of the power series of I_v; enough at v = 0, x = 32."""

TEMME_UP_TO = 2.0
TEMME = 13
"""Terms of Temme's series of K_v for x <= 2."""

STEED, STEED_SINGLE = 72, 24
"""Steps of Steed's continued fraction of K_v for x > 2, where it converges slowest at 2; in float64 and in float32, whose
range ends where more steps would multiply what they add nothing to."""

RATIO_FAR = 30.0
"""The ratio of two I uses the uniform expansion where r is above this (13 terms, 1e-15), else the recurrence."""

DESCENT = 32
"""Steps of the downward recurrence of I_(v+1) / I_v, from an order where a bound is a good start."""

RECIPROCAL_GAMMA = (
    1.0,
    0.5772156649015329,
    -0.6558780715202539,
    -0.04200263503409524,
    0.16653861138229148,
    -0.04219773455554433,
    -0.009621971527876973,
    0.0072189432466631,
    -0.0011651675918590652,
    -0.00021524167411495098,
    0.0001280502823881162,
    -2.013485478078824e-05,
    -1.2504934821426706e-06,
    1.133027231981696e-06,
    -2.056338416977607e-07,
    6.116095104481416e-09,
    5.002007644469223e-09,
    -1.18127457048702e-09,
)
"""1 / Gamma(1 + t) = sum_k c_k t^k (DLMF 5.7.1), enough for |t| <= 1/2."""
