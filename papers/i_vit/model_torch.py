"""Quantisation-aware training in PyTorch: the zoo's vision transformer computed by the simulation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.architecture import VisionTransformer
from common.models.vision_torch import ViT
from common.models.weights import Weights, from_torch, to_torch
from papers.i_vit import network
from papers.i_vit.convert import check_norms, check_ranges, convert_vit
from papers.i_vit.simulation import Options, Simulation
from papers.i_vit.store import Exported


class QuantisedViT(nn.Module):
    """Images to logits through simulated integers. In training mode every pass updates the ranges of the quantisers.

    Raises:
        RuntimeError: evaluated before any range is known. ValueError: a norm's weight is 0.
    """

    def __init__(
        self,
        architecture: VisionTransformer,
        weights: Weights,
        options: Options | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        check_norms(weights)
        self.vit, self.options = ViT(architecture, dtype=dtype), options or Options()
        to_torch(self.vit, weights)
        self.names = network.vit_acts(architecture)
        self.ranges: Tensor
        self.register_buffer("ranges", torch.zeros(len(self.names), 2, dtype=dtype))

    def forward(self, images: Float[Tensor, "batch height width channel"]) -> Float[Tensor, "batch classes"]:
        q, scale = self.codes(images)
        return q * scale

    def codes(
        self, images: Float[Tensor, "batch height width channel"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, ""]]:
        """Logits as whole numbers, and their scale."""
        if not self.training and not torch.compiler.is_compiling():
            check_ranges(self.names, self.ranges.detach().cpu().numpy())
        weights = dict(self.vit.named_parameters())
        simulation = Simulation(weights, self.names, self.ranges, self.options, self.training)
        found = network.vit(simulation, self.vit.architecture, images.to(self.ranges.dtype))
        if self.training:
            self.ranges = simulation.updated().detach()
        return found.q, found.scale

    def convert(self) -> Exported:
        """The integer network; see :func:`.convert.convert`."""
        ranges = self.ranges.detach().cpu().numpy()
        return convert_vit(from_torch(self.vit), ranges, self.vit.architecture, self.options)
