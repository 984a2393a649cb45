"""Quantisation-aware training in flax.nnx: the zoo's vision transformer computed by the simulation. Build, train and evaluate it
inside ``jax.enable_x64(True)``: float32 cannot hold the integers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from common.architecture import VisionTransformer
from common.models.vision_jax import ViT
from common.models.weights import Weights, from_flax, to_flax, torch_name
from common.ops import readable
from papers.i_vit import network
from papers.i_vit.convert import check_norms, check_ranges, convert_vit
from papers.i_vit.simulation import Options, Simulation
from papers.i_vit.store import Exported


class Ranges(nnx.Variable):
    """(least, most) that each quantiser has seen."""


class QuantisedViT(nnx.Module):
    """As :class:`papers.i_vit.model_torch.QuantisedViT`."""

    def __init__(
        self, architecture: VisionTransformer, weights: Weights, options: Options | None = None, param_dtype: Any = jnp.float64
    ) -> None:
        check_norms(weights)
        self.vit, self.options = ViT(architecture, param_dtype=param_dtype), options or Options()
        to_flax(self.vit, weights)
        self.names = tuple(network.vit_acts(architecture))
        self.ranges = Ranges(jnp.zeros((len(self.names), 2), param_dtype))
        self.training = False

    def train(self, **attributes: Any) -> None:
        super().train(**attributes)
        self.training = True

    def eval(self, **attributes: Any) -> None:
        super().eval(**attributes)
        self.training = False

    def __call__(self, images: Float[Array, "batch height width channel"]) -> Float[Array, "batch classes"]:
        q, scale = self.codes(images)
        return q * scale

    def codes(self, images: Float[Array, "batch height width channel"]) -> tuple[Float[Array, "batch classes"], Float[Array, ""]]:
        """Logits as whole numbers, and their scale."""
        ranges = self.ranges[...]
        if not self.training and readable(ranges):
            check_ranges(list(self.names), np.asarray(ranges))
        simulation = Simulation(self._weights(), list(self.names), ranges, self.options, self.training)
        found = network.vit(simulation, self.vit.architecture, images.astype(ranges.dtype))
        if self.training:
            self.ranges[...] = simulation.updated()
        return found.q, found.scale

    def convert(self) -> Exported:
        """The integer network; see :func:`.convert.convert`."""
        return convert_vit(from_flax(self.vit), np.asarray(self.ranges[...]), self.vit.architecture, self.options)

    def _weights(self) -> dict[str, Array]:
        """With PyTorch's names and layouts."""
        leaves = nnx.to_flat_state(nnx.state(self.vit, nnx.Param))
        return {torch_name(path): leaf[...].T if path[-1] == "kernel" else leaf[...] for path, leaf in leaves}


def classification_loss(model: QuantisedViT, batch: tuple[Array, Array]) -> Float[Array, ""]:
    """Mean cross-entropy of (images, labels), in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()
