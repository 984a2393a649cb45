"""The rescaling of a whole matrix in one pass over the CPU's vector units, and products that end in it."""

from __future__ import annotations

import threading
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Int, Int8, Int32
from torch import Tensor

from common.threads import in_parts

SMALL = 1 << 20
"""Entries below which a second thread costs more than it saves: one pass takes 0.1 ns for each."""

CACHED = 1 << 22
"""32-bit entries of a product that are made before they are rescaled: the memory that a thread keeps, 16 MiB at most."""

_kept = threading.local()
_NONE = np.zeros(0, np.int32)


def matmul_dyadic(
    x: Int8[Tensor, "rows inner"],
    weight: Int8[Tensor, "outer inner"],
    bias: Int32[Tensor, " outer"] | None,
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    bits: int,
    dtype: torch.dtype,
) -> Int[Tensor, "rows outer"]:
    """Some rows after the other, in memory that each thread keeps: fresh pages would cost as much as the rescaling."""
    rows, outer = x.shape[0], weight.shape[0]
    parts = max(1, -(-rows * outer // CACHED))
    height = -(-rows // parts)
    if getattr(_kept, "memory", _NONE).size < height * outer:
        _kept.memory = np.empty(height * outer, np.int32)
    total = torch.from_numpy(_kept.memory[: height * outer]).view(height, outer)
    out = torch.empty(rows, outer, dtype=dtype)
    columns = weight.t()
    for first in range(0, rows, height):
        last = min(first + height, rows)
        torch._int_mm(x[first:last], columns, out=total[: last - first])
        _rescale(total[: last - first], bias, multiplier, shift, bits, out[first:last])
    return out


def requantise(
    x: Int32[Tensor, "*rows channel"],
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    bits: int,
    dtype: torch.dtype,
) -> Int[Tensor, "*rows channel"]:
    out = torch.empty(x.shape, dtype=dtype)
    if out.numel():
        channels = x.shape[-1]
        _rescale(x.contiguous().view(-1, channels), None, multiplier, shift, bits, out.view(-1, channels))
    return out


def _rescale(x: Tensor, bias: Tensor | None, multiplier: Tensor, shift: Tensor, bits: int, out: Tensor) -> None:
    source, target, m, e = x.numpy(), out.numpy(), multiplier.contiguous().numpy(), shift.contiguous().numpy()
    added = _NONE if bias is None else bias.contiguous().numpy()
    threads = torch.get_num_threads()

    def work(first: int, last: int) -> Any:
        return _rescale_rows(source[first:last], added, m, e, bits, target[first:last])

    in_parts(work, len(source), 1 if source.size < SMALL else min(threads, len(source)), threads)


@numba.njit(nogil=True, cache=True)
@no_type_check
def _rescale_rows(x, bias, multiplier, shift, bits, out):
    channels = x.shape[1]
    low, high = -(np.int64(1) << (bits - 1)), (np.int64(1) << (bits - 1)) - 1
    b, m, e, half = (
        np.zeros(channels, np.int32),
        np.empty(channels, np.int64),
        np.empty(channels, np.int64),
        np.empty(channels, np.int64),
    )
    for c in range(channels):
        place = c if multiplier.size > 1 else 0
        m[c], e[c] = multiplier[place], shift[place]
        half[c] = (np.int64(1) << e[c]) >> 1
        if bias.size:
            b[c] = bias[c]
    for row in range(x.shape[0]):
        for c in range(channels):
            # In 32 bits first, as every backend adds the bias.
            total = np.int32(x[row, c] + b[c])
            y = (np.int64(total) * m[c] + half[c]) >> e[c]
            out[row, c] = min(max(y, low), high)
