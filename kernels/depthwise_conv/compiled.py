"""The gradient of the weight on a CPU: sums over rows of the images, in vectors of many numbers."""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from common.threads import in_parts

from .layout import Geometry

LONG = 256
"""Numbers of one sum that are handled together at least, where the stride is 1: shorter loops spend their time on beginning."""
PART = 1 << 19
"""Multiply-adds that are worth a thread."""
FAST = {"contract", "reassoc", "nsz"}


def weight_gradient(
    x: Float[Tensor, "batch height width channel"], dy: Float[Tensor, "batch out_height out_width channel"], g: Geometry
) -> Float[Tensor, "kernel_height kernel_width channel"]:
    """dw[u, v, c] = sum_bij x[b, s i + d u - p, s j + d v - p, c] dy[b, i, j, c].

    Neighbouring outputs of a row read neighbouring pixels where the stride is 1, so a stretch of pixels with all its channels is
    one long vector; sums are kept for each place in it, and added at the end. Each thread has sums of its own.
    """
    pixels = max(1, LONG // g.channels) if g.stride == 1 else 1
    rows, work = g.batch * g.out_height, dy.numel() * g.kernel_height * g.kernel_width
    threads = torch.get_num_threads()
    parts = max(1, min(threads, work // PART, rows))
    sums = np.zeros((parts, g.kernel_height, g.kernel_width, pixels * g.channels), x.detach().numpy().dtype)
    images = x.detach().contiguous().numpy().reshape(g.batch, g.height, -1)
    seeds = dy.detach().contiguous().numpy().reshape(g.batch, g.out_height, -1)

    def work_on(first: int, last: int) -> None:
        for part in range(first, last):
            _add_rows(
                images, seeds, sums[part], g.channels, g.stride, g.dilation, g.top, g.left, rows * part // parts,
                rows * (part + 1) // parts,
            )  # fmt: skip

    in_parts(work_on, parts, parts, threads)
    whole = sums.reshape(parts, g.kernel_height, g.kernel_width, pixels, g.channels)
    return torch.from_numpy(np.ascontiguousarray(whole.sum((0, 3))))


@numba.njit(nogil=True, cache=True, fastmath=FAST)
@no_type_check
def _add_rows(x, dy, sums, channels, stride, dilation, top, left, first, last):
    height, width = x.shape[1], x.shape[2] // channels
    out_height, out_width = dy.shape[1], dy.shape[2] // channels
    pixels = sums.shape[2] // channels
    for row in range(first, last):
        b, i = row // out_height, row % out_height
        for u in range(sums.shape[0]):
            above = i * stride + u * dilation - top
            if above < 0 or above >= height:
                continue
            for v in range(sums.shape[1]):
                shift, total = v * dilation - left, sums[u, v]
                # The outputs whose pixel is within the row: 0 <= stride j + shift < width.
                start, end = max(0, -(shift // stride)), min(out_width, (width - 1 - shift) // stride + 1)
                for j in range(start, end, pixels):
                    count, at = min(pixels, end - j) * channels, (j * stride + shift) * channels
                    pixel, seed = x[b, above, at : at + count], dy[b, i, j * channels : j * channels + count]
                    for c in range(count):
                        total[c] += pixel[c] * seed[c]
