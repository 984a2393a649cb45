"""The :class:`common.nas.ConvNet` in flax.nnx; its twin is :mod:`common.nas.network_torch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from common.models.weights import to_flax
from common.nas.network import ConvNet, Convolution, InvertedResidual, Layer

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "none": lambda x: x,
}

Mechanism = Callable[[Array, Array, int], Array]


def build(layer: Layer, epsilon: float = 1e-5, depthwise: Mechanism | None = None, param_dtype: Any = jnp.float32) -> nnx.Module:
    """A module of one layer, on (batch, height, width, channel)."""
    if isinstance(layer, Convolution):
        return ConvNorm(layer, epsilon, depthwise, param_dtype)
    return Inverted(layer, epsilon, depthwise, param_dtype)


class Network(nnx.Module):
    """Images (batch, height, width, channel) to logits (batch, classes).

    In training, running variances gather the biased variance of a batch, where PyTorch gathers the unbiased one.

    Args:
        seed: of :meth:`common.nas.ConvNet.initial_weights`; None leaves zeros and ones, for ``jax.eval_shape``.
        depthwise: the mechanism of depthwise convolutions, ``depthwise(x, weight, stride)`` on x (batch, height, width,
            channel) and weight (kernel, kernel, channel); None is the library's.
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.

    A subclass whose layers are of other kinds too has a ``build`` of its own.
    """

    build = staticmethod(build)

    def __init__(
        self, net: ConvNet, seed: int | None = 0, depthwise: Mechanism | None = None, param_dtype: Any = jnp.float32
    ) -> None:
        self.net = net
        self.layers = nnx.List([self.build(layer, net.epsilon, depthwise, param_dtype) for layer in net.layers])
        self.head = nnx.Linear(net.layers[-1].outputs, net.classes, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        if seed is not None:
            to_flax(self, net.initial_weights(seed))

    def __call__(self, images: Float[Array, "batch height width channel"]) -> Float[Array, "batch classes"]:
        x = images
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))


class ConvNorm(nnx.Module):
    """activation(norm(convolution(x)))."""

    def __init__(self, layer: Convolution, epsilon: float, depthwise: Mechanism | None, param_dtype: Any) -> None:
        a = self.layer = layer
        options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        self.convolution = nnx.Conv(
            a.inputs, a.outputs, (a.kernel, a.kernel), a.stride, padding=a.kernel // 2, feature_group_count=a.groups,
            use_bias=False, kernel_init=nnx.initializers.zeros_init(), **options,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(a.outputs, momentum=0.9, epsilon=epsilon, use_fast_variance=False, **options)
        # flax keeps the statistics in float32 whatever the parameters are.
        self.norm.mean = nnx.BatchStat(jnp.zeros(a.outputs, param_dtype))
        self.norm.var = nnx.BatchStat(jnp.ones(a.outputs, param_dtype))
        self.activation = ACTIVATIONS[a.activation]
        self.mechanism = depthwise if a.groups == a.inputs == a.outputs else None

    def __call__(self, x: Array) -> Array:
        if self.mechanism is None:
            y = self.convolution(x)
        else:
            weight = rearrange(self.convolution.kernel[...], "row column one channel -> row column (one channel)")
            y = self.mechanism(x, weight, self.layer.stride)
        return self.activation(self.norm(y))


class Inverted(nnx.Module):
    """The :class:`common.nas.InvertedResidual`."""

    def __init__(self, layer: InvertedResidual, epsilon: float, depthwise: Mechanism | None, param_dtype: Any) -> None:
        self.layer = layer
        parts = {name: ConvNorm(part, epsilon, depthwise, param_dtype) for name, part in layer.parts()}
        self.expand = parts.get("expand")
        self.depthwise = parts["depthwise"]
        self.squeeze = Squeeze(layer.hidden, layer.squeeze, layer.activation, param_dtype) if layer.squeeze else None
        self.project = parts["project"]

    def __call__(self, x: Array) -> Array:
        y = x
        if self.expand is not None:
            y = self.expand(y)
            if self.layer.groups > 1 and self.layer.group_first:
                y = rearrange(y, "batch height width (group each) -> batch height width (each group)", group=self.layer.groups)
        y = self.depthwise(y)
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.project(y)
        return x + y if self.layer.residual else y


class Squeeze(nnx.Module):
    """x sigmoid(restore(activation(reduce(mean(x)))))."""

    def __init__(self, hidden: int, squeeze: int, activation: str, param_dtype: Any) -> None:
        options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        self.reduce = nnx.Linear(hidden, squeeze, **options)
        self.restore = nnx.Linear(squeeze, hidden, **options)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Array) -> Array:
        return x * jax.nn.sigmoid(self.restore(self.activation(self.reduce(x.mean((1, 2))))))[:, None, None, :]
