"""One pass over the blocks on the CPU: a block's moments stay in the first cache from decoding to encoding.

The upper bits of a quotient give the lowest code it can have; a step or two over the borders gives the code. Products that
are added are fused, as they are in PyTorch's own loops, so the moments are those of its Adam bit for bit.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from common.threads import in_parts

from .tables import STEPS, first_guess, tables

PART = 1 << 15
"""Elements that are worth a thread."""


def adam8bit(arrays: list[np.ndarray], numbers: np.ndarray, block: int, grid: bool, threads: int) -> tuple[np.ndarray, ...]:
    """``arrays``: gradient, mean, its scale, square, its scale. ``numbers``: beta1, 1 - beta1, beta2, 1 - beta2, epsilon,
    1 - beta1^t, sqrt(1 - beta2^t) in float32."""
    inputs = [np.ascontiguousarray(each) for each in arrays]
    gradient, mean_scale = inputs[0], inputs[2]
    outputs = [np.empty(gradient.size, np.float32), *(np.empty_like(each) for each in inputs[1:])]

    def work(first: int, last: int) -> None:
        _step(*inputs, *outputs, *tables(), *first_guess(), numbers, block, grid, first, last)

    in_parts(work, mean_scale.size, min(threads, gradient.size // PART), threads)
    return tuple(outputs)


@intrinsic
@no_type_check
def _fused(context, a, b, c):
    """a b + c, rounded once."""

    def code(context, builder, signature, arguments):
        kind = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fma", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, arguments)

    return types.float32(types.float32, types.float32, types.float32), code


@njit(nogil=True, cache=True)
@no_type_check
def _step(
    g,
    mc,
    ms,
    vc,
    vs,
    out,
    mc_out,
    ms_out,
    vc_out,
    vs_out,
    signed,
    unsigned,
    m_edges,
    v_edges,
    m_guess,
    v_guess,
    numbers,
    block,
    grid,
    first,
    last,
):
    beta1, rest1, beta2, rest2, epsilon, correct1, correct2 = numbers
    m, v = np.empty(block, np.float32), np.empty(block, np.float32)
    for b in range(first, last):
        start = b * block
        n = min(block, g.size - start)
        m_max, v_max = np.float32(0), np.float32(0)
        for i in range(n):
            at = start + i
            m[i] = _fused(rest1, g[at], beta1 * (signed[mc[at]] * ms[b]))
            v[i] = _fused(rest2 * g[at], g[at], beta2 * (unsigned[vc[at]] * vs[b]))
        for i in range(n):
            out[start + i] = m[i] / correct1 / (np.sqrt(v[i]) / correct2 + epsilon)
            m_max, v_max = max(m_max, abs(m[i])), max(v_max, v[i])
        ms_out[b], vs_out[b] = m_max, v_max
        _encode(m, n, m_max, m_edges, m_guess, grid, mc_out, start)
        _encode(v, n, v_max, v_edges, v_guess, grid, vc_out, start)


@njit(nogil=True, cache=True, inline="always")
@no_type_check
def _encode(x, n, scale, edges, guess, grid, out, start):
    tiny, one, half, steps = np.float32(1.1754943508222875e-38), np.float32(1), np.float32(0.5), np.float32(STEPS)
    inverse = one / max(scale, tiny)
    for i in range(n):
        x[i] = x[i] * inverse
    if grid:
        for i in range(n):
            x[i] = np.floor((x[i] + one) * half * steps + half) * (np.float32(2) / steps) - one
    bits = x.view(np.uint32)
    for i in range(n):
        code = np.int32(guess[bits[i] >> np.uint32(17)])
        while code < 255 and x[i] > edges[code]:
            code += 1
        out[start + i] = 0 if grid and scale == 0 else code
