"""The definition: one product for each tap, of the padded image shifted to it."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace


def depthwise_conv(x: Any, weight: Any, *, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Any:
    """y[b, i, j, c] = sum_uv w[u, v, c] x[b, s i + d u - p, s j + d v - p, c]."""
    xp = array_namespace(x)
    outputs = []
    for axis, kernel in ((1, weight.shape[0]), (2, weight.shape[1])):
        pad = dilation * (kernel - 1) // 2 if padding is None else padding
        edge = xp.zeros((*x.shape[:axis], pad, *x.shape[axis + 1 :]), dtype=x.dtype)
        x = xp.concat([edge, x, edge], axis=axis)
        outputs.append((x.shape[axis] - dilation * (kernel - 1) - 1) // stride + 1)
    rows, columns = (stride * (count - 1) + 1 for count in outputs)
    y = xp.zeros((x.shape[0], *outputs, x.shape[3]), dtype=x.dtype)
    for u in range(weight.shape[0]):
        for v in range(weight.shape[1]):
            i, j = u * dilation, v * dilation
            y = y + weight[u, v] * x[:, i : i + rows : stride, j : j + columns : stride]
    return y
