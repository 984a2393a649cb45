"""The rescaling of a whole matrix in one pass over the CPU's vector units."""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from common.threads import in_parts

SMALL = 1 << 15
"""Entries below which a second thread costs more than it saves."""


def requantise(
    x: Int32[Tensor, "*rows channel"],
    bias: Int32[Tensor, " channel"] | None,
    multiplier: Int32[Tensor, " channels"],
    shift: Int32[Tensor, " channels"],
    bits: int,
    dtype: torch.dtype,
) -> Int[Tensor, "*rows channel"]:
    channels = x.shape[-1]
    out = torch.empty(x.shape, dtype=dtype)
    if out.numel() == 0:
        return out
    m = multiplier.expand(channels).contiguous().numpy()
    e = shift.expand(channels).to(torch.int64).contiguous()
    half = torch.bitwise_right_shift(torch.bitwise_left_shift(torch.ones_like(e), e), 1).numpy()
    added = np.zeros(channels, np.int32) if bias is None else bias.contiguous().numpy()
    source, target = x.contiguous().view(-1, channels).numpy(), out.view(-1, channels).numpy()
    threads = torch.get_num_threads()
    parts = 1 if out.numel() < SMALL else min(threads, len(source))

    def work(first: int, last: int) -> Any:
        return _requantise(source[first:last], added, m, half, e.numpy(), bits, target[first:last])

    in_parts(work, len(source), parts, threads)
    return out


@numba.njit(nogil=True, cache=True)
@no_type_check
def _requantise(x, bias, m, half, e, bits, out):
    low, high = -(np.int64(1) << (bits - 1)), (np.int64(1) << (bits - 1)) - 1
    for row in range(x.shape[0]):
        for c in range(x.shape[1]):
            # In 32 bits first, as every backend adds the bias.
            total = np.int32(x[row, c] + bias[c])
            y = (np.int64(total) * np.int64(m[c]) + half[c]) >> e[c]
            out[row, c] = min(max(y, low), high)
