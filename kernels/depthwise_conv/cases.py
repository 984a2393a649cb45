"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"float64": 1e-9, "float32": 1e-5}
SINGLE = {"float32": 1e-5}


def _images(
    shape: tuple[int, int, int, int], kernel: tuple[int, int], **options: Any
) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.standard_normal(shape), "weight": rng.standard_normal((*kernel, shape[3])), **options}

    return make


def _large(size: int, channels: int, kernel: int, stride: int = 1, batch: int = 1) -> Case:
    name = f"{batch}x{size}x{size}x{channels} k{kernel} s{stride}"
    return Case(name, _images((batch, size, size, channels), (kernel, kernel), stride=stride), SINGLE, large=True)


CASES = {
    "depthwise_conv": [
        Case("3 x 3", _images((2, 6, 5, 35), (3, 3)), EXACT),
        Case("stride 2, even size", _images((2, 8, 6, 3), (3, 3), stride=2), EXACT),
        Case("stride 2, odd size, 5 x 5", _images((1, 9, 7, 40), (5, 5), stride=2), SINGLE),
        Case("dilated", _images((1, 9, 11, 5), (3, 3), dilation=2), SINGLE),
        Case("dilated, stride 2", _images((1, 9, 12, 4), (3, 5), stride=2, dilation=2), EXACT),
        Case("stride 3 skips pixels", _images((1, 10, 11, 4), (1, 3), stride=3, dilation=3, padding=2), SINGLE),
        Case("5 x 5, long rows", _images((1, 3, 100, 3), (5, 5)), SINGLE),
        Case("7 x 7 over a pixel", _images((2, 1, 1, 3), (7, 7)), SINGLE),
        Case("one row, 1 x 7", _images((1, 1, 20, 130), (1, 7)), SINGLE),
        Case("one column, stride 2", _images((1, 5, 1, 1), (3, 3), stride=2), SINGLE),
        Case("no padding, even kernel", _images((1, 6, 7, 4), (2, 4), padding=0), SINGLE),
        Case("wide padding", _images((1, 3, 4, 2), (3, 3), padding=4, stride=2), SINGLE),
        Case("no images", _images((0, 4, 4, 3), (3, 3), stride=2), SINGLE),
        Case("half precision", _images((2, 7, 6, 20), (3, 3)), {"float16": 2e-3}, why="results are rounded to 11 bits"),
        _large(112, 32, 3),
        _large(56, 144, 5, stride=2),
        _large(28, 192, 5),
        _large(14, 576, 3, batch=8),
        _large(7, 960, 7, batch=8),
    ]
}


def conv2d(*, x: Any, weight: Any, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Any:
    """torch.nn.functional.conv2d on views: what lies in memory is what it calls channels last."""
    import torch

    return torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), weight.permute(2, 0, 1)[:, None], None, stride, _padding(weight, dilation, padding), dilation, x.shape[3]
    ).permute(0, 2, 3, 1)  # fmt: skip


def conv2d_contiguous(*, x: Any, weight: Any, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Any:
    """The same sizes with channels first. The numbers are taken as if they lay so: for the time alone, not for the result."""
    import torch

    (batch, height, width, channels), (rows, columns) = x.shape, weight.shape[:2]
    images, kernels = x.reshape(batch, channels, height, width), weight.reshape(channels, 1, rows, columns)
    return torch.nn.functional.conv2d(images, kernels, None, stride, _padding(weight, dilation, padding), dilation, channels)


def lax_conv(*, x: Any, weight: Any, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Any:
    """jax.lax.conv_general_dilated on the memory of these tensors, with JAX's own gradients."""
    return _jax_peer(_lax_conv, x, weight, stride, dilation, tuple(_padding(weight, dilation, padding)))


def nnx_conv(*, x: Any, weight: Any, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Any:
    """flax.nnx.Conv with these kernels, likewise."""
    return _jax_peer(_nnx_conv, x, weight, stride, dilation, tuple(_padding(weight, dilation, padding)))


def _lax_conv(x: Any, weight: Any, stride: int, dilation: int, padding: tuple[int, int]) -> Any:
    from jax import lax

    names = ("NHWC", "HWIO", "NHWC")
    pads = [(pad, pad) for pad in padding]
    return lax.conv_general_dilated(
        x, weight[:, :, None], (stride,) * 2, pads, rhs_dilation=(dilation,) * 2, dimension_numbers=names,
        feature_group_count=x.shape[3],
    )  # fmt: skip


def _nnx_conv(x: Any, weight: Any, stride: int, dilation: int, padding: tuple[int, int]) -> Any:
    from flax import nnx

    layer = nnx.Conv(
        x.shape[3], x.shape[3], weight.shape[:2], strides=stride, padding=[(pad, pad) for pad in padding],
        kernel_dilation=dilation, feature_group_count=x.shape[3], use_bias=False, rngs=nnx.Rngs(0),
    )  # fmt: skip
    layer.kernel[...] = weight[:, :, None]
    return layer(x)


def _padding(weight: Any, dilation: int, padding: int | None) -> list[int]:
    return [dilation * (size - 1) // 2 if padding is None else padding for size in weight.shape[:2]]


@functools.cache
def _compiled(function: Callable[..., Any]) -> tuple[Any, Any]:
    """The function and its vector-Jacobian product; the latter does not compute the value, which it does not need."""
    import jax

    def pull(x: Any, weight: Any, dy: Any, *options: Any) -> Any:
        return jax.vjp(lambda x, weight: function(x, weight, *options), x, weight)[1](dy)

    return jax.jit(function, static_argnums=(2, 3, 4)), jax.jit(pull, static_argnums=(3, 4, 5))


def _jax_peer(function: Callable[..., Any], x: Any, weight: Any, *options: Any) -> Any:
    import jax
    import torch

    def run(compiled: Any, *tensors: Any) -> Any:
        arrays = [jax.dlpack.from_dlpack(each.detach().contiguous()) for each in tensors]
        return jax.tree.map(torch.from_dlpack, jax.block_until_ready(compiled(*arrays, *options)))

    class Peer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            ctx.save_for_backward(x, weight)
            return run(_compiled(function)[0], x, weight)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            return run(_compiled(function)[1], *ctx.saved_tensors, dy)

    return Peer.apply(x, weight)


PEERS = {
    "depthwise_conv": {
        "conv2d (channels last)": conv2d,
        "conv2d (channels first)": conv2d_contiguous,
        "lax.conv_general_dilated": lax_conv,
        "nnx.Conv": nnx_conv,
    }
}
