"""The stochastic super-net in flax.nnx; its twin is :mod:`papers.fbnet.model_torch`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from common.models.weights import to_flax
from common.nas import InvertedResidual, network_jax
from common.nas.network import Layer
from papers.fbnet.kernel import group_pointwise_shuffle
from papers.fbnet.latency import check_milliseconds
from papers.fbnet.space import CODES, Space
from papers.fbnet.supernet import check_tau, initial_weights


def gumbel_softmax(
    theta: Float[Array, "*sample layer candidate"],
    tau: float | int | Array,
    *,
    noise: Float[Array, "*samples layer candidate"] | None = None,
    key: Array | None = None,
) -> Float[Array, "*samples layer candidate"]:
    """m = softmax((theta + g) / tau) over candidates; Gumbel noise g is given, or drawn with a key.

    Raises:
        ValueError: tau is not above 0, where it is no traced number; neither noise nor key.
    """
    if not isinstance(tau, jax.core.Tracer):
        check_tau(tau)  # type: ignore[arg-type]
    if noise is None:
        if key is None:
            raise ValueError("gumbel_softmax has neither noise nor key; wanted one of them")
        noise = jax.random.gumbel(key, theta.shape, theta.dtype)
    return jax.nn.softmax((theta + noise) / tau, -1)


def latency_of(
    masks: Float[Array, "*sample layer candidate"], table: Float[Array, "layer candidate"], rest: float | int
) -> Float[Array, ""]:
    """LAT = rest + sum_l sum_i m_li LAT(b_li) in the unit of the table; the mean over samples."""
    return rest + (masks * table).sum((-2, -1)).mean()


def loss_of(cross_entropy: Array, latency: Array, alpha: float, beta: float) -> Array:
    """L = CE alpha log(LAT)^beta, LAT in milliseconds.

    Raises:
        ValueError: a latency of 1 ms or less, where it is no traced number.
    """
    check_milliseconds(latency)
    return cross_entropy * alpha * jnp.log(latency) ** beta


class StochasticSuperNet(nnx.Module):
    """x_{l+1} = sum_i m_li b_li(x_l): images (batch, height, width, channel) and masks to logits (batch, classes).

    Args:
        seed: of :func:`papers.fbnet.supernet.initial_weights`.
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
        mechanism: of depthwise convolutions, such as ``kernels.depthwise_conv``; None is the library's.
    """

    def __init__(
        self, space: Space, seed: int | None = 0, param_dtype: Any = jnp.float32, mechanism: network_jax.Mechanism | None = None
    ) -> None:
        self.space = space
        self.theta = nnx.Param(jnp.zeros((len(space.places), len(CODES)), param_dtype))
        self.first = build(space.first(), param_dtype, mechanism)
        self.layers = nnx.List(
            [
                nnx.List([build(each, param_dtype, mechanism) if each else Identity() for each in layer])
                for layer in space.candidates()
            ]
        )
        self.final = build(space.final(), param_dtype, mechanism)
        self.head = nnx.Linear(space.last, space.classes, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        if seed is not None:
            to_flax(self, initial_weights(space, seed))

    def __call__(
        self, images: Float[Array, "batch height width channel"], masks: Float[Array, "*sample layer candidate"]
    ) -> Float[Array, "batch classes"]:
        """Masks are shared by the batch, (layer, candidate), or one for each image, (batch, layer, candidate)."""
        x = self.first(images)
        for number, blocks in enumerate(self.layers):
            x = mixed(blocks, x, masks[..., number, :])
        return self.head(self.final(x).mean((1, 2)))


def mixed(blocks: Any, x: Array, mask: Float[Array, "*sample candidate"]) -> Array:
    """sum_i m_i b_i(x)."""
    shares = mask if mask.ndim == 1 else jnp.moveaxis(mask, -1, 0)[..., None, None, None]
    return sum(share * block(x) for share, block in zip(shares, blocks, strict=True))


def build(layer: Layer, param_dtype: Any = jnp.float32, mechanism: network_jax.Mechanism | None = None) -> nnx.Module:
    """A module of one layer on (batch, height, width, channel), with this room's grouped convolution."""
    if isinstance(layer, InvertedResidual) and layer.groups > 1 and layer.expands:
        return Shuffled(layer, 1e-5, mechanism, param_dtype)
    return network_jax.build(layer, 1e-5, mechanism, param_dtype)


class Identity(nnx.Module):
    def __call__(self, x: Array) -> Array:
        return x


class Shuffled(network_jax.Inverted):
    """The inverted residual whose first convolution writes shuffled outputs; so its norm has them in the shuffled order."""

    def __call__(self, x: Array) -> Array:
        assert self.expand is not None
        weight = self.expand.convolution.kernel[...]
        kernel = rearrange(weight, "1 1 each (group out) -> group each out", group=self.layer.groups)
        y = group_pointwise_shuffle(x, kernel)
        y = self.project(self.depthwise(self.expand.activation(self.expand.norm(y))))
        return x + y if self.layer.residual else y
