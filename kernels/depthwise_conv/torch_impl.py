"""PyTorch: its own convolution, on views in which channels are last, which is how oneDNN and cuDNN are fastest.

On a CPU the library's gradients take many times what the convolution takes, unless the kernel is 3 x 3 and not dilated. There
a compiled loop stands in for that of the weight (``compiled``), and a convolution for that of a dilated one's input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import readable

from .layout import Geometry, geometry


def depthwise_conv(
    x: Float[Tensor, "batch height width channel"],
    weight: Float[Tensor, "kernel_height kernel_width channel"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
) -> Float[Tensor, "batch out_height out_width channel"]:
    g = geometry(tuple(x.shape), tuple(weight.shape), stride, dilation, padding)
    differentiated = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if differentiated and g.batch and _slow(g) and _loops_take(x) and _loops_take(weight):
        return _Convolution.apply(x, weight, g)
    return _forward(x, weight, g)


def _slow(g: Geometry) -> bool:
    """Whether oneDNN has no vectorised gradients."""
    return max(g.kernel_height, g.kernel_width) > 3 or g.dilation > 1


def _loops_take(array: Tensor) -> bool:
    return array.dtype in (torch.float32, torch.float64) and readable(array)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = g
        return _forward(x, weight, g)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        from . import compiled

        x, weight = ctx.saved_tensors
        g, dx, dweight = ctx.geometry, None, None
        if ctx.needs_input_grad[1]:
            dweight = compiled.weight_gradient(x, dy, g)
        if ctx.needs_input_grad[0]:
            dx = _input_gradient(x, weight, dy, g)
        return dx, dweight, None


def _input_gradient(x: Tensor, weight: Tensor, dy: Tensor, g: Geometry) -> Tensor:
    """The library's, unless the kernel is dilated: then a convolution of dy, with zeros between and around, is faster."""
    reach = (g.kernel_height - 1) * g.dilation, (g.kernel_width - 1) * g.dilation
    above, before = reach[0] - g.top, reach[1] - g.left
    if g.dilation == 1 or min(above, before) < 0:
        arrays = _first(dy), _first(x), _kernels(weight), None
        sizes = [g.stride] * 2, [g.top, g.left], [g.dilation] * 2, False, [0, 0], g.channels
        return _last(torch.ops.aten.convolution_backward(*arrays, *sizes, [True, False, False])[0])
    seed = dy.new_zeros(g.batch, g.height + reach[0], g.width + reach[1], g.channels)
    seed[:, above :: g.stride, before :: g.stride][:, : g.out_height, : g.out_width] = dy
    return _last(F.conv2d(_first(seed), _kernels(weight.flip(0, 1)), None, 1, 0, g.dilation, g.channels))


def _forward(x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    return _last(F.conv2d(_first(x), _kernels(weight), None, g.stride, (g.top, g.left), g.dilation, g.channels))


# Views by permute: einops would cost as much as the convolution of a small image.
def _first(x: Tensor) -> Tensor:
    return x.contiguous().permute(0, 3, 1, 2)


def _last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1).contiguous()


def _kernels(weight: Tensor) -> Tensor:
    return weight.permute(2, 0, 1).unsqueeze(1)
