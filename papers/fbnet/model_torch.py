"""The stochastic super-net in PyTorch; its twin is :mod:`papers.fbnet.model_jax`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.models.weights import to_torch
from common.nas import ConvNet, InvertedResidual, network_torch
from common.nas.network import Layer
from kernels.depthwise_conv import depthwise_conv
from papers.fbnet.kernel import group_pointwise_shuffle
from papers.fbnet.latency import check_milliseconds
from papers.fbnet.space import CODES, Space, check
from papers.fbnet.supernet import check_tau, initial_weights


def gumbel_softmax(
    theta: Float[Tensor, "*sample layer candidate"],
    tau: float | int,
    *,
    noise: Float[Tensor, "*samples layer candidate"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*samples layer candidate"]:
    """m = softmax((theta + g) / tau) over candidates, with Gumbel noise g, given or drawn as -log of an exponential number.

    With leading axes in the noise there is a mask for each of them, say for each image of a batch.

    Raises:
        ValueError: tau is not above 0.

    Source: the paper, equation 6; Jang et al. 2017 (arXiv 1611.01144).
    """
    check_tau(tau)
    if noise is None:
        noise = -torch.empty_like(theta).exponential_(generator=generator).log()
    return torch.softmax((theta + noise) / tau, -1)


def latency_of(
    masks: Float[Tensor, "*sample layer candidate"], table: Float[Tensor, "layer candidate"], rest: float | int
) -> Float[Tensor, ""]:
    """LAT = rest + sum_l sum_i m_li LAT(b_li) in the unit of the table; the mean over samples.

    Source: the paper, equations 3 and 8; ``rest`` is what is not searched.
    """
    return rest + (masks * table).sum((-2, -1)).mean()


def loss_of(cross_entropy: Tensor, latency: Tensor, alpha: float, beta: float) -> Tensor:
    """L = CE alpha log(LAT)^beta, LAT in milliseconds.

    Raises:
        ValueError: a latency of 1 ms or less, whose logarithm is not above 0.

    Source: the paper, equation 2.
    """
    check_milliseconds(latency)
    return cross_entropy * alpha * latency.log() ** beta


class StochasticSuperNet(nn.Module):
    """x_{l+1} = sum_i m_li b_li(x_l): images (batch, height, width, channel) and masks to logits (batch, classes).

    Every candidate of every layer is computed and kept for the backward pass, which is what the method costs.

    Args:
        seed: of :func:`papers.fbnet.supernet.initial_weights`; None leaves PyTorch's own weights.
        options: dtype and device.

    Attributes:
        theta: logits of the candidates, (layer, candidate).

    Source: the paper, section 3.2.
    """

    def __init__(self, space: Space, seed: int | None = 0, **options: Any) -> None:
        super().__init__()
        self.space = space
        self.theta = nn.Parameter(torch.zeros(len(space.places), len(CODES), **options))
        self.first = build(space.first(), **options)
        self.layers = nn.ModuleList(
            nn.ModuleList(build(each, **options) if each else nn.Identity() for each in layer) for layer in space.candidates()
        )
        self.final = build(space.final(), **options)
        self.head = nn.Linear(space.last, space.classes, **options)
        if seed is not None:
            to_torch(self, initial_weights(space, seed))

    def forward(
        self, images: Float[Tensor, "batch height width channel"], masks: Float[Tensor, "*sample layer candidate"]
    ) -> Float[Tensor, "batch classes"]:
        """Masks are shared by the batch, (layer, candidate), or one for each image, (batch, layer, candidate)."""
        x = self.first(rearrange(images, "batch height width channel -> batch channel height width"))
        for number, blocks in enumerate(self.layers):
            x = mixed(blocks, x, masks[..., number, :])
        return self.head(self.final(x).mean((2, 3)))

    def forward_path(
        self, images: Float[Tensor, "batch height width channel"], codes: Sequence[str]
    ) -> Float[Tensor, "batch classes"]:
        """One block of each layer alone: the limit of masks that are 0 and 1."""
        check(codes, self.space)
        x = self.first(rearrange(images, "batch height width channel -> batch channel height width"))
        blocks: Any
        for blocks, code in zip(self.layers, codes, strict=True):
            x = blocks[CODES.index(code)](x)
        return self.head(self.final(x).mean((2, 3)))

    def weights(self) -> list[nn.Parameter]:
        """All parameters but the logits."""
        return [each for name, each in self.named_parameters() if name != "theta"]


def mixed(blocks: Any, x: Tensor, mask: Float[Tensor, "*sample candidate"]) -> Tensor:
    """sum_i m_i b_i(x)."""
    shares = mask.unbind(-1) if mask.ndim == 1 else mask[..., None, None, None].unbind(1)
    total = blocks[0](x) * shares[0]
    for block, share in zip(blocks[1:], shares[1:], strict=True):
        # One pass over memory for product and sum; in place, as no gradient needs the sum so far.
        total = total.addcmul_(block(x), share)
    return total


def build(layer: Layer, **options: Any) -> nn.Module:
    """A module of one layer on (batch, channel, height, width), with this repository's depthwise and grouped convolutions."""
    if isinstance(layer, InvertedResidual) and layer.groups > 1 and layer.expands:
        return Shuffled(layer, 1e-5, depthwise, **options)
    return network_torch.build(layer, 1e-5, depthwise, **options)


def child(net: ConvNet, seed: int | None = 0, **options: Any) -> network_torch.Network:
    """A network on its own, with weights drawn anew."""
    model = network_torch.Network(net, None, depthwise, **options)
    for number, layer in enumerate(net.layers):
        model.layers[number] = build(layer, **options)
    if seed is not None:
        to_torch(model, net.initial_weights(seed))
    return model


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return depthwise_conv(x, weight, stride=stride)


class Shuffled(network_torch.Inverted):
    """The inverted residual whose first convolution writes shuffled outputs; so its norm has them in the shuffled order."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.expand is not None
        kernel = rearrange(self.expand.convolution.weight, "(group out) each 1 1 -> group each out", group=self.layer.groups)
        y = group_pointwise_shuffle(x.permute(0, 2, 3, 1), kernel.contiguous()).permute(0, 3, 1, 2)
        y = self.project(self.depthwise(self.expand.activation(self.expand.norm(y))))
        return x + y if self.layer.residual else y
