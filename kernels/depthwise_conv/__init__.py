"""Depthwise convolution of images: each channel has a small kernel of its own, and channels do not mix.

With the 1 x 1 convolutions around it, it is what mobile networks are made of, and what searches for them decide about.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from common.ops import framework, operation

from .layout import geometry


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x", "weight"))
def depthwise_conv(
    x: Float[Any, "batch height width channel"],
    weight: Float[Any, "kernel_height kernel_width channel"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    backend: str | None = None,
) -> Float[Any, "batch out_height out_width channel"]:
    """y[b, i, j, c] = sum_uv w[u, v, c] x[b, s i + d u - p, s j + d v - p, c], with zeros outside of x.

    s = ``stride``, d = ``dilation``, p = ``padding``, which may differ by axis where it is not given. As in the libraries, the
    kernel is not mirrored. There is no bias: what follows a depthwise convolution is a normalisation.

    Sums are float32, float64 for float64; only PyTorch and JAX compute in float64. The gradient of the weight is summed in a
    fixed order that may depend on the number of threads; on a GPU, PyTorch leaves that to its library. Gradients of gradients
    are not offered.

    Args:
        x: images, channels last; float16, bfloat16, float32 or float64.
        weight: one kernel for each channel, in the dtype of x.
        stride: distance of neighbouring outputs, at least 1, in both directions.
        dilation: distance of neighbouring taps, at least 1, in both directions.
        padding: rows and columns of zeros on every side, at least 0; None: dilation (kernel - 1) / 2 by axis, for kernels of
            odd size, so that a stride of 1 keeps height and width.

    Returns:
        y in the dtype of x, out = floor((size + 2 p - d (kernel - 1) - 1) / s) + 1 by axis.

    Raises:
        ValueError: shapes that do not fit, no channel or no tap, a kernel of even size without ``padding``, a dilated kernel
            that is larger than the padded image, a stride, dilation or padding out of range.
        TypeError: integers, mixed dtypes, what is no array.

    Source: Howard et al., MobileNets (arXiv 1704.04861), section 3.1.
    """
    for what, array in (("x", x), ("weight", weight)):
        if framework(array) is None:
            raise TypeError(f"depthwise_conv: {what} is a {type(array).__name__}; wanted a torch tensor, jax or NumPy array")
    kinds = str(x.dtype), str(weight.dtype)
    if kinds[0] != kinds[1] or "float" not in kinds[0]:
        raise TypeError(f"depthwise_conv: x is {kinds[0]}, weight {kinds[1]}; wanted the same floating type, convert one or both")
    for what, value, least in (("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0)):
        if what == "padding" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            also = ", or None" if what == "padding" else ""
            raise ValueError(f"depthwise_conv: {what} is {value!r}; wanted a whole number of at least {least}{also}")
    shapes = tuple(x.shape), tuple(weight.shape)
    if len(shapes[0]) != 4 or len(shapes[1]) != 3 or shapes[0][3] != shapes[1][2] or 0 in shapes[1]:
        raise ValueError(
            f"depthwise_conv: x has shape {shapes[0]}, weight {shapes[1]}; wanted (batch, height, width, channel) and "
            "(kernel height, kernel width, channel), the same channels, none of the latter 0"
        )
    if padding is None and 0 in (shapes[1][0] % 2, shapes[1][1] % 2):
        raise ValueError(f"depthwise_conv: weight of shape {shapes[1]} has an even size; wanted odd ones, or give padding")
    g = geometry(*shapes, stride, dilation, padding)
    if min(g.out_height, g.out_width) < 1:
        reach = tuple(dilation * (size - 1) + 1 for size in shapes[1][:2])
        raise ValueError(
            f"depthwise_conv: the kernel reaches over {reach} pixels, the image with its padding of {(g.top, g.left)} has "
            f"{(g.height + 2 * g.top, g.width + 2 * g.left)}; wanted at least as many, and an image that is not empty"
        )
    return depthwise_conv.operation(x, weight, stride=stride, dilation=dilation, padding=padding, backend=backend)
