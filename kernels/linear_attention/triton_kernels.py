"""The Triton kernels of decayed causal linear attention; ``triton_impl`` launches them.

All arrays are contiguous: q, k (g, n, d), v, o (g, n, e), states (g, d, e) float32, with g = batch * heads; ``slope`` has
one float32 for each of ``heads``. Sums are float32. REVERSE walks backwards in time: a row then reads lambda^(B-r) of the
state that comes in and writes lambda^r into the one that goes out, instead of the other way round.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _tile(base, row, columns, length, width: tl.constexpr):
    """``length`` rows from ``base`` on as float32, zero outside. The base carries 64 bits, the rest 32: that saves registers."""
    inside = (row < length)[:, None] & (columns < width)[None, :]
    return tl.load(base + (row[:, None] * width + columns[None, :]), mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _keep(base, value, row, columns, length, width: tl.constexpr):
    """The counterpart of _tile."""
    inside = (row < length)[:, None] & (columns < width)[None, :]
    tl.store(base + (row[:, None] * width + columns[None, :]), value.to(base.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _edges(rate, row, length, REVERSE: tl.constexpr):
    """Weights of a block's rows: what they read of the state that comes in, what they write into the one that goes out."""
    since, until = tl.exp(-rate * (row + 1)), tl.exp(-rate * tl.maximum(length - 1 - row, 0))
    if REVERSE:
        return until, since
    return since, until


@triton.jit
@no_type_check
def _mask(rate, age):
    """lambda^age, and 0 for what is not yet there."""
    return tl.where(age >= 0, tl.exp(-rate * tl.maximum(age, 0)), 0.0)


@triton.jit
@no_type_check
def walk_kernel(
    q, k, v, o, first, last, slope, n, heads, count,
    d: tl.constexpr, e: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr, WITHIN: tl.constexpr,
    WIDTH: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head, SLICE columns of v and of the state, ``count`` blocks one after the other."""
    g = tl.program_id(2).to(tl.int64)
    segment, segments = tl.program_id(0), tl.num_programs(0)
    wide, narrow, row = tl.arange(0, WIDTH), tl.program_id(1) * SLICE + tl.arange(0, SLICE), tl.arange(0, BLOCK)
    rate = tl.load(slope + g % heads)
    state = tl.zeros((WIDTH, SLICE), tl.float32)
    if first is not None:
        state = _tile(first + (g * segments + segment) * d * e, wide, narrow, d, e)
    for step in range(count):
        i = segment * count + step
        start = (tl.cdiv(n, BLOCK) - 1 - i if REVERSE else i) * BLOCK
        length = tl.minimum(n - start, BLOCK)
        read, write = _edges(rate, row, length, REVERSE)
        at = g * n + start
        queries = _tile(q + at * d, row, wide, length, d)
        out = tl.dot(queries * read[:, None], state, input_precision=PRECISION)
        keys, values = _tile(k + at * d, row, wide, length, d), _tile(v + at * e, row, narrow, length, e)
        if WITHIN:
            scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * _mask(rate, row[:, None] - row[None, :])
            out = tl.dot(scores, values, acc=out, input_precision=PRECISION)
        else:
            out += _tile(o + at * e, row, narrow, length, e)
        _keep(o + at * e, out, row, narrow, length, e)
        state *= tl.exp(-rate * length)
        state = tl.dot(tl.trans(keys * write[:, None]), values, acc=state, input_precision=PRECISION)
    if last is not None and segment == segments - 1:
        _keep(last + g * d * e, state, wide, narrow, d, e)


@triton.jit
@no_type_check
def within_kernel(
    q, k, v, do, dq, dk, dv, slope, n, heads,
    d: tl.constexpr, e: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients that stay within one block: dQ = dP K, dK = dP^T Q, dV = P^T dO. Heads are read CHUNK columns a time."""
    g = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, BLOCK)
    start = tl.program_id(0) * BLOCK
    length, at = n - start, g * n + start
    mask = _mask(tl.load(slope + g % heads), row[:, None] - row[None, :])
    dscores = mask * _scores(do + at * e, v + at * e, row, length, e, BLOCK, CHUNK, PRECISION)
    for c in range(0, d, CHUNK):
        columns = c + tl.arange(0, CHUNK)
        keys = _tile(k + at * d, row, columns, length, d)
        _keep(dq + at * d, tl.dot(dscores, keys, input_precision=PRECISION), row, columns, length, d)
        queries = _tile(q + at * d, row, columns, length, d)
        _keep(dk + at * d, tl.dot(tl.trans(dscores), queries, input_precision=PRECISION), row, columns, length, d)
    scores = mask * _scores(q + at * d, k + at * d, row, length, d, BLOCK, CHUNK, PRECISION)
    for c in range(0, e, CHUNK):
        columns = c + tl.arange(0, CHUNK)
        douts = _tile(do + at * e, row, columns, length, e)
        _keep(dv + at * e, tl.dot(tl.trans(scores), douts, input_precision=PRECISION), row, columns, length, e)


@triton.jit
@no_type_check
def _scores(a, b, row, length, width: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """A B^T of one block."""
    found = tl.zeros((BLOCK, BLOCK), tl.float32)
    for c in range(0, width, CHUNK):
        columns = c + tl.arange(0, CHUNK)
        left, right = _tile(a, row, columns, length, width), _tile(b, row, columns, length, width)
        found = tl.dot(left, tl.trans(right), acc=found, input_precision=PRECISION)
    return found


@triton.jit
@no_type_check
def states_kernel(
    k, v, states, slope, n, heads,
    d: tl.constexpr, e: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
    WIDTH: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What each block adds to the state, in the order in which the blocks are walked."""
    g = tl.program_id(2).to(tl.int64)
    step, blocks = tl.program_id(0), tl.num_programs(0)
    i = blocks - 1 - step if REVERSE else step
    wide, narrow, row = tl.arange(0, WIDTH), tl.program_id(1) * SLICE + tl.arange(0, SLICE), tl.arange(0, BLOCK)
    length, at = tl.minimum(n - i * BLOCK, BLOCK), g * n + i * BLOCK
    _, write = _edges(tl.load(slope + g % heads), row, length, REVERSE)
    keys, values = _tile(k + at * d, row, wide, length, d), _tile(v + at * e, row, narrow, length, e)
    added = tl.dot(tl.trans(keys * write[:, None]), values, input_precision=PRECISION)
    _keep(states + (g * blocks + step) * d * e, added, wide, narrow, d, e)


@triton.jit
@no_type_check
def prefix_kernel(states, first, slope, n, size, heads, BLOCK: tl.constexpr, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """Replace what each block adds by the state before it; CHUNK entries of one head's state in a program."""
    g = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    rate = tl.load(slope + g % heads)
    state = tl.zeros((CHUNK,), tl.float32)
    if first is not None:
        state = tl.load(first + g * size + at, mask=at < size, other=0.0)
    blocks = tl.cdiv(n, BLOCK)
    for step in range(blocks):
        i = blocks - 1 - step if REVERSE else step
        here = states + (g * blocks + step) * size + at
        added = tl.load(here, mask=at < size, other=0.0)
        tl.store(here, state, mask=at < size)
        state = state * tl.exp(-rate * tl.minimum(n - i * BLOCK, BLOCK)) + added


@triton.jit
@no_type_check
def left_kernel(
    q, k, v, o, first, slope, n, heads,
    d: tl.constexpr, e: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
    WIDTH: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries against every block of keys before it (after it, if REVERSE), without a running state."""
    g = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0)
    wide, narrow, row = tl.arange(0, WIDTH), tl.program_id(1) * SLICE + tl.arange(0, SLICE), tl.arange(0, BLOCK)
    rate = tl.load(slope + g % heads)
    queries = _tile(q + (g * n + i * BLOCK) * d, row, wide, n - i * BLOCK, d)
    out = tl.zeros((BLOCK, SLICE), tl.float32)
    if first is not None:
        distance = tl.maximum(n - 1 - i * BLOCK - row, 0) if REVERSE else i * BLOCK + row + 1
        state = _tile(first + g * d * e, wide, narrow, d, e)
        out = tl.dot(queries * tl.exp(-rate * distance)[:, None], state, input_precision=PRECISION)
    for j in range(i if REVERSE else 0, tl.cdiv(n, BLOCK) if REVERSE else i + 1):
        length, at = n - j * BLOCK, g * n + j * BLOCK
        age = (i - j) * BLOCK + row[:, None] - row[None, :]
        if REVERSE:
            age = -age
        keys, values = _tile(k + at * d, row, wide, length, d), _tile(v + at * e, row, narrow, length, e)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * _mask(rate, age)
        out = tl.dot(scores, values, acc=out, input_precision=PRECISION)
    _keep(o + (g * n + i * BLOCK) * e, out, row, narrow, n - i * BLOCK, e)
