"""The image models of :mod:`common.architecture` in flax.nnx; their twins are in :mod:`common.models.vision_torch`.

Images are (batch, height, width, channel) in both frameworks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from common.architecture import ResNet, VisionTransformer
from common.models import EPSILON
from common.models.weights import initial_weights, to_flax


def softmax_attention(
    q: Float[Array, "batch head seq dim"],
    k: Float[Array, "batch head seq dim"],
    v: Float[Array, "batch head seq dim"],
    layer: int,
) -> Float[Array, "batch head seq dim"]:
    """o_i = sum_j softmax_j(q_i . k_j / sqrt(dim)) v_j, over all tokens."""
    weights = jax.nn.softmax(jnp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("bhij,bhjd->bhid", weights, v)


class ViT(nnx.Module):
    """Images to logits (batch, classes), read from the class token.

    Args:
        attention: the mechanism, ``attention(q, k, v, layer)`` on (batch, heads, tokens, head_dim).
        linear: makes every projection; called like ``nnx.Linear(inputs, outputs, param_dtype=..., ...)``.
        seed: of :func:`common.models.weights.initial_weights`.
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
    """

    def __init__(
        self,
        architecture: VisionTransformer,
        attention: Callable[..., Array] = softmax_attention,
        linear: Callable[..., nnx.Module] = nnx.Linear,
        seed: int = 0,
        param_dtype: Any = jnp.float32,
    ) -> None:
        a = self.architecture = architecture
        # The layers' own draws are overwritten below, so they draw nothing.
        options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        linear = partial(linear, kernel_init=nnx.initializers.zeros_init(), **options)
        norm = partial(nnx.LayerNorm, a.width, epsilon=EPSILON, use_fast_variance=False, **options)
        self.patches = linear(a.patch**2 * a.channels, a.width)
        self.class_token = nnx.Param(jnp.zeros((1, a.width), param_dtype))
        self.positions = nnx.Param(jnp.zeros((a.tokens, a.width), param_dtype))
        self.blocks = nnx.List([Block(a, layer, attention, linear, norm) for layer in range(a.depth)])
        self.norm = norm()
        self.head = linear(a.width, a.classes)
        to_flax(self, initial_weights(a, seed))

    def __call__(self, images: Float[Array, "batch height width channel"]) -> Float[Array, "batch classes"]:
        size = self.architecture.patch
        patches = rearrange(images, "batch (row y) (column x) channel -> batch (row column) (y x channel)", y=size, x=size)
        x = self.patches(patches)
        token = jnp.broadcast_to(self.class_token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(
        self,
        architecture: VisionTransformer,
        layer: int,
        attention: Callable[..., Array],
        linear: Callable[..., nnx.Module],
        norm: Callable[[], nnx.Module],
    ) -> None:
        self.attention_norm = norm()
        self.attention = Attention(architecture, layer, attention, linear)
        self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(architecture, linear)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nnx.Module):
    """Projections around the mechanism."""

    def __init__(
        self, architecture: VisionTransformer, layer: int, mechanism: Callable[..., Array], linear: Callable[..., nnx.Module]
    ) -> None:
        self.heads, self.layer, self.mechanism = architecture.heads, layer, mechanism
        width = architecture.width
        self.query, self.key, self.value, self.output = (linear(width, width) for _ in range(4))

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            rearrange(project(x), "batch seq (head dim) -> batch head seq dim", head=self.heads)
            for project in (self.query, self.key, self.value)
        )
        return self.output(rearrange(self.mechanism(q, k, v, self.layer), "batch head seq dim -> batch seq (head dim)"))


class FeedForward(nnx.Module):
    """down(gelu(up(x)))."""

    def __init__(self, architecture: VisionTransformer, linear: Callable[..., nnx.Module]) -> None:
        self.up = linear(architecture.width, architecture.hidden)
        self.down = linear(architecture.hidden, architecture.width)

    def __call__(self, x: Array) -> Array:
        return self.down(nnx.gelu(self.up(x), approximate=False))


class ResidualNet(nnx.Module):
    """The :class:`common.architecture.ResNet`: images to logits (batch, classes).

    In training, running variances gather the biased variance of a batch, where PyTorch gathers the unbiased one.

    Args:
        seed: of :func:`common.models.weights.initial_weights`.
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
    """

    def __init__(self, architecture: ResNet, seed: int = 0, param_dtype: Any = jnp.float32) -> None:
        a = self.architecture = architecture
        options = {"param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        convolution: Callable[..., Any] = partial(Convolution, **options)
        self.stem = convolution(a.channels, a.widths[0], 3)
        blocks, inputs = [], a.widths[0]
        for stage, width in enumerate(a.widths):
            for place in range(a.blocks):
                blocks.append(Residual(inputs, width, 2 if stage and place == 0 else 1, convolution))
                inputs = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, a.classes, **options)
        to_flax(self, initial_weights(a, seed))

    def __call__(self, images: Float[Array, "batch height width channel"]) -> Float[Array, "batch classes"]:
        x = nnx.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Residual(nnx.Module):
    """relu(shortcut(x) + second(relu(first(x))))."""

    def __init__(self, inputs: int, outputs: int, stride: int, convolution: Callable[..., Any]) -> None:
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def __call__(self, x: Array) -> Array:
        straight = x if self.shortcut is None else self.shortcut(x)
        return nnx.relu(straight + self.second(nnx.relu(self.first(x))))


class Convolution(nnx.Module):
    """norm(convolution(x)), zeros around the image on both sides alike, whatever the stride."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, **options: Any) -> None:
        self.convolution = nnx.Conv(
            inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False,
            kernel_init=nnx.initializers.zeros_init(), **options,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, epsilon=EPSILON, use_fast_variance=False, **options)
        # flax keeps the statistics in float32 whatever the parameters are.
        self.norm.mean = nnx.BatchStat(jnp.zeros(outputs, options["param_dtype"]))
        self.norm.var = nnx.BatchStat(jnp.ones(outputs, options["param_dtype"]))

    def __call__(self, x: Array) -> Array:
        return self.norm(self.convolution(x))
