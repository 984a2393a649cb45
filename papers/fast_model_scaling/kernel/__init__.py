"""Grouped convolution of images: channels see those of their own group alone.

The group width is what scaling must not forget: with it as it is, wider layers cost more only in proportion to their width, in
many narrow groups that matrix units and caches handle badly.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from common.ops import framework, operation

__all__ = ["group_conv"]


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x", "weight"))
def group_conv(
    x: Float[Any, "batch height width channel"],
    weight: Float[Any, "kernel_height kernel_width each out"],
    *,
    stride: int = 1,
    backend: str | None = None,
) -> Float[Any, "batch out_height out_width out"]:
    """y[b, i, j, o] = sum_uvc w[u, v, c, o] x[b, s i + u - p, s j + v - p, each g + c],   g = floor(o groups / out).

    groups = channel / each, s = ``stride``, p = (kernel - 1) / 2 by axis, with zeros outside of x. The first out / groups outputs
    see the first ``each`` channels, and so on; one group is an ordinary convolution. There is no bias.

    Sums are float32, float64 for float64; only PyTorch and JAX compute in float64. Gradients of gradients are not offered.

    Args:
        x: images, channels last; float16, bfloat16, float32 or float64.
        weight: kernels of odd size, in the dtype of x; ``each`` is the group width.
        stride: distance of neighbouring outputs, at least 1, in both directions.

    Returns:
        y in the dtype of x, of ceil(height / s) by ceil(width / s) places.

    Raises:
        ValueError: shapes that do not fit, groups that divide neither channels nor outputs, an even kernel, an empty image, a
            stride out of range.
        TypeError: integers, mixed dtypes, what is no array.

    Source: Xie et al. 2017 (ResNeXt, arXiv 1611.05431), section 3.3; the paper, appendix on group convolution.
    """
    for what, array in (("x", x), ("weight", weight)):
        if framework(array) is None:
            raise TypeError(f"group_conv: {what} is a {type(array).__name__}; wanted a torch tensor, jax or NumPy array")
    kinds = str(x.dtype), str(weight.dtype)
    if kinds[0] != kinds[1] or "float" not in kinds[0]:
        raise TypeError(f"group_conv: x is {kinds[0]}, weight {kinds[1]}; wanted the same floating type, convert one or both")
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"group_conv: stride is {stride!r}; wanted a whole number of at least 1")
    images, kernels = tuple(x.shape), tuple(weight.shape)
    if len(images) != 4 or len(kernels) != 4 or 0 in images[1:] or 0 in kernels:
        raise ValueError(
            f"group_conv: x has shape {images}, weight {kernels}; wanted (batch, height, width, channel) and (kernel height, "
            "kernel width, channels of a group, outputs), none of them 0 but the batch"
        )
    if 0 in (kernels[0] % 2, kernels[1] % 2):
        raise ValueError(f"group_conv: weight of shape {kernels} has an even kernel; wanted odd sizes")
    if images[3] % kernels[2] or kernels[3] % (images[3] // kernels[2]):
        raise ValueError(
            f"group_conv: {images[3]} channels in groups of {kernels[2]} and {kernels[3]} outputs do not fit; wanted channels that "
            "are a multiple of the group width, and outputs that are one of the number of groups"
        )
    return group_conv.operation(x, weight, stride=stride, backend=backend)
