"""Noise on a CPU: compiled loops over a few hundred counters, which the compiler turns into vector instructions.

The logarithm and the sines are polynomials in float32 (Cephes, S. Moshier, single precision; errors of 1e-7), because the
functions of the C library take one number at a time.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

COUNTERS = 256
"""Counters that are worked on at once: 1024 elements, whose temporaries stay in the first-level cache."""

_WORD, _SHIFT, _NINE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(9)
_M0, _M1, _W0, _W1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_HALF, _ONE, _TWO, _FOUR, _STEP = np.float32(0.5), np.float32(1), np.float32(2), np.float32(4), np.float32(2.0**-23)
_QUARTER_TURN, _ROOT = np.float32(np.pi / 2), np.float32(np.sqrt(0.5))
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
_S0, _S1, _S2 = np.float32(-1.9515295891e-4), np.float32(8.3321608736e-3), np.float32(-1.6666654611e-1)
_C0, _C1, _C2 = np.float32(2.443315711809948e-5), np.float32(-1.388731625493765e-3), np.float32(4.166664568298827e-2)


@njit(cache=True, nogil=True)
@no_type_check
def perturb(theta, out, scale, keep, low, high, parameter, offset):
    """out = keep theta + scale z for flat float32 arrays, the elements counted from ``offset``; out may be theta."""
    radius, turn = np.empty(2 * COUNTERS, np.float32), np.empty(2 * COUNTERS, np.float32)
    bits, z = radius.view(np.int32), np.empty(4 * COUNTERS, np.float32)
    first = offset // 4
    for start in range(4 * first - offset, out.size, 4 * COUNTERS):
        uniforms(low, high, parameter, (start + offset) // 4, radius, turn)
        for i in range(2 * COUNTERS):
            # u = m 2^e with m from sqrt(1/2) to sqrt(2).
            e = (bits[i] >> 23) - 126
            bits[i] = (bits[i] & 0x7FFFFF) | 0x3F000000
            m = radius[i]
            small = m < _ROOT
            power = np.float32(e - 1) if small else np.float32(e)
            x = m + m - _ONE if small else m - _ONE
            y = ((((((((_L0 * x + _L1) * x + _L2) * x + _L3) * x + _L4) * x + _L5) * x + _L6) * x + _L7) * x + _L8) * x * x * x
            y = y + _LN2_LOW * power - _HALF * x * x
            radius[i] = np.sqrt(-_TWO * (x + y + _LN2_HIGH * power))
        for i in range(2 * COUNTERS):
            quarters = _FOUR * turn[i]
            near = np.floor(quarters + _HALF)
            y = (quarters - near) * _QUARTER_TURN
            y2 = y * y
            sine = y + y * y2 * ((_S0 * y2 + _S1) * y2 + _S2)
            cosine = _ONE - _HALF * y2 + y2 * y2 * ((_C0 * y2 + _C1) * y2 + _C2)
            k = np.int32(near)
            odd = (k & 1) != 0
            real, imaginary = (sine, cosine) if odd else (cosine, sine)
            z[2 * i] = radius[i] * (-real if ((k + 1) & 2) != 0 else real)
            z[2 * i + 1] = radius[i] * (-imaginary if (k & 2) != 0 else imaginary)
        begin, end = max(start, 0), min(start + 4 * COUNTERS, out.size)
        for i in range(begin, end):
            out[i] = keep * theta[i] + scale * z[i - start]


@njit(cache=True, nogil=True)
@no_type_check
def uniforms(low, high, parameter, first, odd, even):
    """Fill two arrays of 2 n uniforms with those of the counters first .. first + n - 1: words 0, 2 and words 1, 3."""
    half, step = odd.dtype.type(0.5), odd.dtype.type(2.0**-23)
    for i in range(odd.size // 2):
        c0, c1, c2, c3 = np.uint64(first) + np.uint64(i), np.uint64(0), np.uint64(parameter), np.uint64(0)
        k0, k1 = np.uint64(low), np.uint64(high)
        for _ in range(10):
            a, b = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ k0, b & _WORD, (a >> _SHIFT) ^ c3 ^ k1, a & _WORD
            k0, k1 = (k0 + _W0) & _WORD, (k1 + _W1) & _WORD
        # 23 bits are exact in float32, half a step included; int32 is what converts fast.
        odd[2 * i] = (odd.dtype.type(np.int32(c0 >> _NINE)) + half) * step
        even[2 * i] = (odd.dtype.type(np.int32(c1 >> _NINE)) + half) * step
        odd[2 * i + 1] = (odd.dtype.type(np.int32(c2 >> _NINE)) + half) * step
        even[2 * i + 1] = (odd.dtype.type(np.int32(c3 >> _NINE)) + half) * step
