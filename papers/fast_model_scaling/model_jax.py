"""The networks in flax.nnx; their twins are in :mod:`papers.fast_model_scaling.model_torch`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from common.nas import ConvNet, network_jax
from common.nas.network_jax import Mechanism
from papers.fast_model_scaling.block import Bottleneck, MaxPool


def build(layer: Any, epsilon: float = 1e-5, grouped: Mechanism | None = None, param_dtype: Any = jnp.float32) -> nnx.Module:
    """A module of one layer, on (batch, height, width, channel)."""
    if isinstance(layer, Bottleneck):
        return Block(layer, epsilon, grouped, param_dtype)
    if isinstance(layer, MaxPool):
        return Pool(layer.stride)
    return network_jax.build(layer, epsilon, param_dtype=param_dtype)


class Network(network_jax.Network):
    """:class:`common.nas.network_jax.Network` whose layers may be bottlenecks and max-pooling too.

    Args:
        grouped: the mechanism of the bottlenecks' grouped convolutions, ``grouped(x, weight, stride)`` on x (batch, height,
            width, channel) and weight (3, 3, channels of a group, channel); None is the library's.
    """

    build = staticmethod(build)

    def __init__(
        self, net: ConvNet, seed: int | None = 0, grouped: Mechanism | None = None, param_dtype: Any = jnp.float32
    ) -> None:
        super().__init__(net, seed, grouped, param_dtype)


class Pool(nnx.Module):
    """The :class:`papers.fast_model_scaling.block.MaxPool`."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        return nnx.max_pool(x, (3, 3), (self.stride, self.stride), ((1, 1), (1, 1)))


class Block(nnx.Module):
    """The :class:`papers.fast_model_scaling.block.Bottleneck`."""

    def __init__(self, layer: Bottleneck, epsilon: float, grouped: Mechanism | None, param_dtype: Any) -> None:
        parts = {name: network_jax.ConvNorm(part, epsilon, None, param_dtype) for name, part in layer.parts()}
        self.shortcut = parts.get("shortcut")
        self.reduce = parts["reduce"]
        self.grouped = parts["grouped"]
        gate = (layer.hidden, layer.squeeze, layer.activation)
        self.squeeze = network_jax.Squeeze(*gate, param_dtype) if layer.squeeze else None
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
