"""The super-network in PyTorch: fixed layers and places of candidates; its twin is :mod:`papers.proxyless_nas.supernet_jax`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from common.models.weights import to_torch
from common.nas.network_torch import Mechanism, build
from papers.proxyless_nas.gates import Gates
from papers.proxyless_nas.mixed_torch import mixed_op
from papers.proxyless_nas.space import Space
from papers.proxyless_nas.weights import initial


class SuperNet(nn.Module):
    """Images (batch, height, width, channel) to logits by the candidates that the gates make active.

    Every candidate holds its own shortcut, so Zero is the identity. That adds x to all outputs of a place, one constant to all
    of its gate gradients, and nothing to the gradient of alpha, in which constants cancel. Architecture parameters are no
    weights: they are given to each call.

    Args:
        seed: of the weights, the same in both frameworks; None leaves PyTorch's own, for the meta device.
        depthwise: the mechanism of depthwise convolutions, as in :class:`common.nas.network_torch.Network`.
    """

    def __init__(self, space: Space, seed: int | None = 0, depthwise: Mechanism | None = None, **options: Any) -> None:
        super().__init__()
        self.space = space

        def module(layer: Any) -> nn.Module:
            return nn.Identity() if layer is None else build(layer, space.epsilon, depthwise, **options)

        self.stem, self.first, self.last = module(space.stem), module(space.first), module(space.last)
        self.places = nn.ModuleList(nn.ModuleList(module(place.layer(c)) for c in place.candidates) for place in space.places)
        self.head = nn.Linear(space.last.outputs, space.classes, **options)
        if seed is not None:
            to_torch(self, initial(space, seed))

    def forward(
        self,
        images: Float[Tensor, "batch height width channel"],
        gates: Sequence[Gates],
        alphas: Sequence[Tensor] | None = None,
        mode: str = "path",
        sees_inactive: bool = True,
    ) -> Float[Tensor, "batch classes"]:
        x = self.first(self.stem(rearrange(images, "batch height width channel -> batch channel height width")))
        for place, (operations, gate) in enumerate(zip(self.places, gates, strict=True)):
            if alphas is None:
                x = operations[gate.active](x)
            else:
                x = mixed_op(x, alphas[place], list(operations), gate, mode, sees_inactive=sees_inactive)
        return self.head(self.last(x).mean((2, 3)))
