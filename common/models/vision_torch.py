"""The image models of :mod:`common.architecture` in PyTorch; their twins are in :mod:`common.models.vision_jax`.

Images are (batch, height, width, channel) in both frameworks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.architecture import ResNet, VisionTransformer
from common.models import EPSILON
from common.models.weights import initial_weights, to_torch


def softmax_attention(
    q: Float[Tensor, "batch head seq dim"],
    k: Float[Tensor, "batch head seq dim"],
    v: Float[Tensor, "batch head seq dim"],
    layer: int,
) -> Float[Tensor, "batch head seq dim"]:
    """o_i = sum_j softmax_j(q_i . k_j / sqrt(dim)) v_j, over all tokens."""
    return F.scaled_dot_product_attention(q, k, v)


class ViT(nn.Module):
    """Images to logits (batch, classes), read from the class token.

    Args:
        attention: the mechanism, ``attention(q, k, v, layer)`` on (batch, heads, tokens, head_dim).
        linear: makes every projection; called as ``nn.Linear(inputs, outputs, dtype=dtype)``.
        seed: of :func:`common.models.weights.initial_weights`.
        dtype: of weights and computation.
    """

    def __init__(
        self,
        architecture: VisionTransformer,
        attention: Callable[..., Tensor] = softmax_attention,
        linear: Callable[..., nn.Module] = nn.Linear,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        linear = partial(linear, dtype=dtype)
        norm = partial(nn.LayerNorm, a.width, eps=EPSILON, dtype=dtype)
        self.patches = linear(a.patch**2 * a.channels, a.width)
        self.class_token = nn.Parameter(torch.zeros(1, a.width, dtype=dtype))
        self.positions = nn.Parameter(torch.zeros(a.tokens, a.width, dtype=dtype))
        self.blocks = nn.ModuleList(Block(a, layer, attention, linear, norm) for layer in range(a.depth))
        self.norm = norm()
        self.head = linear(a.width, a.classes)
        to_torch(self, initial_weights(a, seed))

    def forward(self, images: Float[Tensor, "batch height width channel"]) -> Float[Tensor, "batch classes"]:
        size = self.architecture.patch
        patches = rearrange(images, "batch (row y) (column x) channel -> batch (row column) (y x channel)", y=size, x=size)
        x = self.patches(patches)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(
        self,
        architecture: VisionTransformer,
        layer: int,
        attention: Callable[..., Tensor],
        linear: Callable[..., nn.Module],
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = Attention(architecture, layer, attention, linear)
        self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(architecture, linear)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    """Projections around the mechanism."""

    def __init__(
        self, architecture: VisionTransformer, layer: int, mechanism: Callable[..., Tensor], linear: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.heads, self.layer, self.mechanism = architecture.heads, layer, mechanism
        width = architecture.width
        self.query, self.key, self.value, self.output = (linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "batch seq (head dim) -> batch head seq dim", head=self.heads)
            for project in (self.query, self.key, self.value)
        )
        return self.output(rearrange(self.mechanism(q, k, v, self.layer), "batch head seq dim -> batch seq (head dim)"))


class FeedForward(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, architecture: VisionTransformer, linear: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.up = linear(architecture.width, architecture.hidden)
        self.down = linear(architecture.hidden, architecture.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class ResidualNet(nn.Module):
    """The :class:`common.architecture.ResNet`: images to logits (batch, classes).

    Args:
        seed: of :func:`common.models.weights.initial_weights`.
        dtype: of weights and computation.
    """

    def __init__(self, architecture: ResNet, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        a = self.architecture = architecture
        convolution = partial(Convolution, dtype=dtype)
        self.stem = convolution(a.channels, a.widths[0], 3)
        self.blocks = nn.ModuleList()
        inputs = a.widths[0]
        for stage, width in enumerate(a.widths):
            for place in range(a.blocks):
                self.blocks.append(Residual(inputs, width, 2 if stage and place == 0 else 1, convolution))
                inputs = width
        self.head = nn.Linear(inputs, a.classes, dtype=dtype)
        to_torch(self, initial_weights(a, seed))

    def forward(self, images: Float[Tensor, "batch height width channel"]) -> Float[Tensor, "batch classes"]:
        x = F.relu(self.stem(rearrange(images, "batch height width channel -> batch channel height width")))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """relu(shortcut(x) + second(relu(first(x))))."""

    def __init__(self, inputs: int, outputs: int, stride: int, convolution: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        straight = x if self.shortcut is None else self.shortcut(x)
        return F.relu(straight + self.second(F.relu(self.first(x))))


class Convolution(nn.Module):
    """norm(convolution(x)), zeros around the image."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, dtype=dtype)
        self.norm = nn.BatchNorm2d(outputs, eps=EPSILON, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x))


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy of (images, labels), in nats."""
    return F.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 512) -> float:
    """Share of the images whose label has the largest logit, in evaluation mode."""
    training = model.training
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(batch), labels.split(batch), strict=True))
    model.train(training)
    return right / len(images)
