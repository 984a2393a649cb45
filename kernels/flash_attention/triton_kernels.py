"""The Triton kernels of tiled attention; ``triton_impl`` launches them.

All arrays are contiguous: q (g, seq, d), k (g / repeats, keys, d), v (g / repeats, keys, e), o (g, seq, e), and in float32
lse, offset (g, seq); head g reads the keys of g / repeats. Query i sits at key ``shift`` + i; the first ``sinks`` keys are
sinks. Products take their factors in the arrays' type, sums are float32.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _tile(base, row, columns, length, width: tl.constexpr):
    """Rows of a matrix of ``width`` columns, for rows behind its end the last one: numbers that are harmless once their
    weights are zero, and a mask less. The base carries 64 bits, the rest 32: that saves registers."""
    places = tl.minimum(row, length - 1)[:, None] * width + columns[None, :]
    if columns.shape[0] > width:
        return tl.load(base + places, mask=(columns < width)[None, :], other=0.0)
    return tl.load(base + places)


@triton.jit
@no_type_check
def _keep(base, value, row, columns, length, width: tl.constexpr):
    inside = (row < length)[:, None]
    if columns.shape[0] > width:
        inside = inside & (columns < width)[None, :]
    tl.store(base + (row[:, None] * width + columns[None, :]), value.to(base.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _key_tiles(first, last, keys, window, sinks, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Of what queries at keys first .. last see: tiles with sinks, the first and the end of those within the window."""
    end = keys
    if CAUSAL:
        end = tl.minimum(tl.maximum(last + 1, 0), keys)
    start = 0
    sunk = 0
    if WINDOW:
        start = tl.minimum(tl.maximum(first - window + 1, 0), end) // COLUMNS
        sunk = tl.minimum(tl.cdiv(tl.minimum(sinks, end), COLUMNS), start)
    return sunk, start, tl.cdiv(end, COLUMNS)


@triton.jit
@no_type_check
def _hidden(at, key, keys, window, sinks, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether a query at key ``at`` does not see a key; the two broadcast. One comparison for both sides of the band: masks
    of their own would use up the registers that hold masks."""
    far = 2147483647
    if CAUSAL:
        room = at - tl.where(key < keys, key, far >> 1)
        if WINDOW:
            room = tl.minimum(room, tl.where(key < sinks, far, key + (window - 1)) - at)
        hidden = room < 0
    else:
        hidden = key >= keys
    return hidden


@triton.jit
@no_type_check
def forward_kernel(
    q, k, v, o, lse, seq, keys, repeats, shift, window, sinks, scale,
    d: tl.constexpr, e: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: o and lse."""
    i, g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, wide, narrow = i * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, VALUE)
    queries = _tile(q + g * seq * d, row, wide, seq, d)
    top = tl.full((ROWS,), -1e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, VALUE), tl.float32)
    k += (g // repeats) * keys * d
    v += (g // repeats) * keys * e
    first = i * ROWS + shift
    sunk, start, stop = _key_tiles(first, first + ROWS - 1, keys, window, sinks, COLUMNS, CAUSAL, WINDOW)
    for step in range(sunk + stop - start):
        j = tl.where(step < sunk, step, step - sunk + start)
        column = j * COLUMNS + tl.arange(0, COLUMNS)
        scores = tl.dot(queries, tl.trans(_tile(k, column, wide, keys, d)), input_precision=PRECISION) * scale
        hidden = _hidden((row + shift)[:, None], column[None, :], keys, window, sinks, CAUSAL, WINDOW)
        scores = tl.where(hidden, -float("inf"), scores)
        new = tl.maximum(top, tl.max(scores, 1))
        # Differences first: the exponential of a large score is right only if the score itself is not rounded again.
        decay, weights = tl.exp(top - new), tl.exp(scores - new[:, None])
        total = total * decay + tl.sum(weights, 1)
        values = _tile(v, column, narrow, keys, e)
        out = tl.dot(weights.to(v.dtype.element_ty), values, acc=out * decay[:, None], input_precision=PRECISION)
        top = new
    # A query that saw a key has at least its largest weight, 1.
    some = tl.where(total > 0, total, 1.0)
    _keep(o + g * seq * e, out / some[:, None], row, narrow, seq, e)
    tl.store(lse + g * seq + row, tl.where(total > 0, top + tl.log(some), -float("inf")), mask=row < seq)


@triton.jit
@no_type_check
def _level(lse, offset, row, seq):
    """lse and offset of rows; what saw nothing, or is not there, gets the weights exp(-inf)."""
    level = tl.load(lse + row, mask=row < seq, other=-float("inf"))
    there = level > -float("inf")
    return tl.where(there, level, float("inf")), tl.where(there, tl.load(offset + row, mask=row < seq, other=0.0), 0.0)


@triton.jit
@no_type_check
def dq_kernel(
    q, k, v, do, lse, offset, dq, seq, keys, repeats, shift, window, sinks, scale,
    d: tl.constexpr, e: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: dq = scale ds k."""
    i, g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, wide, narrow = i * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, VALUE)
    queries = _tile(q + g * seq * d, row, wide, seq, d)
    level, added = _level(lse + g * seq, offset + g * seq, row, seq)
    douts = _tile(do + g * seq * e, row, narrow, seq, e)
    douts = tl.where((level < float("inf"))[:, None], douts, 0.0).to(do.dtype.element_ty)
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    k += (g // repeats) * keys * d
    v += (g // repeats) * keys * e
    first = i * ROWS + shift
    sunk, start, stop = _key_tiles(first, first + ROWS - 1, keys, window, sinks, COLUMNS, CAUSAL, WINDOW)
    for step in range(sunk + stop - start):
        j = tl.where(step < sunk, step, step - sunk + start)
        column = j * COLUMNS + tl.arange(0, COLUMNS)
        inner = _tile(k, column, wide, keys, d)
        scores = tl.dot(queries, tl.trans(inner), input_precision=PRECISION) * scale
        hidden = _hidden((row + shift)[:, None], column[None, :], keys, window, sinks, CAUSAL, WINDOW)
        weights = tl.exp(tl.where(hidden, -float("inf"), scores) - level[:, None])
        dweights = tl.dot(douts, tl.trans(_tile(v, column, narrow, keys, e)), input_precision=PRECISION)
        dscores = weights * (dweights + added[:, None])
        found = tl.dot(dscores.to(k.dtype.element_ty), inner, acc=found, input_precision=PRECISION)
    _keep(dq + g * seq * d, found * scale, row, wide, seq, d)


@triton.jit
@no_type_check
def dkdv_kernel(
    q, k, v, do, lse, offset, dk, dv, seq, keys, repeats, shift, window, sinks, scale,
    d: tl.constexpr, e: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one key head: dk = scale ds^T q and dv = p^T do, over all heads that read it."""
    j, g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column, wide, narrow = j * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDTH), tl.arange(0, VALUE)
    inner = _tile(k + g * keys * d, column, wide, keys, d)
    values = _tile(v + g * keys * e, column, narrow, keys, e)
    dinner = tl.zeros((COLUMNS, WIDTH), tl.float32)
    dvalues = tl.zeros((COLUMNS, VALUE), tl.float32)
    begin = 0
    stop = tl.cdiv(seq, ROWS)
    if CAUSAL:
        begin = tl.minimum(tl.maximum(j * COLUMNS - shift, 0), seq) // ROWS
    if WINDOW and j * COLUMNS >= sinks:
        stop = tl.cdiv(tl.minimum(tl.maximum((j + 1) * COLUMNS - 1 + window - shift, 0), seq), ROWS)
    count = tl.maximum(stop - begin, 0)
    for step in range(count * repeats):
        head, row = g * repeats + step // count, (begin + step % count) * ROWS + tl.arange(0, ROWS)
        queries = _tile(q + head * seq * d, row, wide, seq, d)
        level, added = _level(lse + head * seq, offset + head * seq, row, seq)
        douts = _tile(do + head * seq * e, row, narrow, seq, e)
        douts = tl.where((level < float("inf"))[:, None], douts, 0.0).to(do.dtype.element_ty)
        # Transposed, keys by queries, so that both sums are products of what is there.
        scores = tl.dot(inner, tl.trans(queries), input_precision=PRECISION) * scale
        hidden = _hidden((row + shift)[None, :], column[:, None], keys, window, sinks, CAUSAL, WINDOW)
        weights = tl.exp(tl.where(hidden, -float("inf"), scores) - level[None, :])
        dvalues = tl.dot(weights.to(do.dtype.element_ty), douts, acc=dvalues, input_precision=PRECISION)
        dweights = tl.dot(values, tl.trans(douts), input_precision=PRECISION)
        dscores = weights * (dweights + added[None, :])
        dinner = tl.dot(dscores.to(q.dtype.element_ty), queries, acc=dinner, input_precision=PRECISION)
    _keep(dk + g * keys * d, dinner * scale, column, wide, keys, d)
    _keep(dv + g * keys * e, dvalues, column, narrow, keys, e)
