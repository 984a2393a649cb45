"""The networks in flax.nnx; their twins are in :mod:`papers.fast_model_scaling.model_torch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from common.models.weights import to_flax
from common.nas import ConvNet, network_jax
from papers.fast_model_scaling.block import Bottleneck, MaxPool

Grouped = Callable[[Array, Array, int], Array]


class Network(nnx.Module):
    """Images (batch, height, width, channel) to logits (batch, classes).

    Args:
        net: whose layers may be bottlenecks and max-pooling beside those of :mod:`common.nas`.
        seed: of :meth:`common.nas.ConvNet.initial_weights`; None leaves zeros and ones, for ``nnx.eval_shape``.
        grouped: the mechanism of the bottlenecks' grouped convolutions, ``grouped(x, weight, stride)`` on x (batch, height,
            width, channel) and weight (3, 3, channels of a group, channel); None is the library's.
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
    """

    def __init__(
        self, net: ConvNet, seed: int | None = 0, grouped: Grouped | None = None, param_dtype: Any = jnp.float32
    ) -> None:
        self.net = net
        self.layers = nnx.List([build(layer, net.epsilon, grouped, param_dtype) for layer in net.layers])
        self.head = nnx.Linear(net.layers[-1].outputs, net.classes, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        if seed is not None:
            to_flax(self, net.initial_weights(seed))

    def __call__(self, images: Float[Array, "batch height width channel"]) -> Float[Array, "batch classes"]:
        x = images
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))


def build(layer: Any, epsilon: float = 1e-5, grouped: Grouped | None = None, param_dtype: Any = jnp.float32) -> nnx.Module:
    """A module of one layer, on (batch, height, width, channel)."""
    if isinstance(layer, Bottleneck):
        return Block(layer, epsilon, grouped, param_dtype)
    if isinstance(layer, MaxPool):
        return Pool(layer.stride)
    return network_jax.build(layer, epsilon, param_dtype=param_dtype)


class Pool(nnx.Module):
    """The :class:`papers.fast_model_scaling.block.MaxPool`."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        return nnx.max_pool(x, (3, 3), (self.stride, self.stride), ((1, 1), (1, 1)))


class Block(nnx.Module):
    """The :class:`papers.fast_model_scaling.block.Bottleneck`."""

    def __init__(self, layer: Bottleneck, epsilon: float, grouped: Grouped | None, param_dtype: Any) -> None:
        parts = {name: network_jax.ConvNorm(part, epsilon, None, param_dtype) for name, part in layer.parts()}
        self.shortcut = parts.get("shortcut")
        self.reduce = parts["reduce"]
        self.grouped = parts["grouped"]
        self.squeeze = network_jax.Squeeze(layer.gate(), param_dtype) if layer.squeeze else None
        self.restore = parts["restore"]
        self.activation = network_jax.ACTIVATIONS[layer.activation]
        self.mechanism = grouped

    def __call__(self, x: Array) -> Array:
        y = self._grouped(self.reduce(x))
        if self.squeeze is not None:
            y = self.squeeze(y)
        return self.activation(self.restore(y) + (x if self.shortcut is None else self.shortcut(x)))

    def _grouped(self, x: Array) -> Array:
        part = self.grouped
        if self.mechanism is None:
            return part(x)
        y = self.mechanism(x, part.convolution.kernel[...], part.layer.stride)
        return part.activation(part.norm(y))
