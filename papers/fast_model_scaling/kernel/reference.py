"""The definition: for each tap one product of every group's pixels with its matrix."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace


def group_conv(x: Any, weight: Any, *, stride: int = 1) -> Any:
    """y[b, i, j, o] = sum_uvc w[u, v, c, o] x[b, s i + u - p, s j + v - p, each g + c],   g = floor(o groups / out)."""
    xp = array_namespace(x)
    rows, columns, each, outputs = weight.shape
    groups = x.shape[3] // each
    sizes = [-(-size // stride) for size in x.shape[1:3]]
    for axis, kernel in ((1, rows), (2, columns)):
        edge = xp.zeros((*x.shape[:axis], (kernel - 1) // 2, *x.shape[axis + 1 :]), dtype=x.dtype)
        x = xp.concat([edge, x, edge], axis=axis)
    down, across = (stride * (count - 1) + 1 for count in sizes)
    total = xp.zeros((x.shape[0], *sizes, groups, 1, outputs // groups), dtype=x.dtype)
    for u in range(rows):
        for v in range(columns):
            pixels = x[:, u : u + down : stride, v : v + across : stride]
            pixels = xp.reshape(pixels, (x.shape[0], *sizes, groups, 1, each))
            taps = xp.permute_dims(xp.reshape(weight[u, v], (each, groups, outputs // groups)), (1, 0, 2))
            total = total + xp.matmul(pixels, taps)
    return xp.reshape(total, (x.shape[0], *sizes, outputs))
