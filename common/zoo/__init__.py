"""Small models trained by this repository, in frozen versions: what a paper about trained networks is run on.

    model = zoo.load("byte_lm.v1").torch()

The weights lie in ``data/zoo`` in bfloat16; :mod:`common.zoo.recipes` says how each was trained, and
``nox -s train-zoo -- <name>`` trains it anew. Importing this package imports no framework.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import ROOT, UserError
from common.architecture import ResNet, Transformer, VisionTransformer
from common.data import find
from common.models.weights import Architecture, Weights
from common.zoo.recipes import RECIPES

INDEX = "zoo/index.json"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model.

    Attributes:
        weights: by PyTorch's names and layouts, float32 (the values are bfloat16's).
        quality: what was measured when it was frozen: its metric and its number, and what else the training found.
        source, sha256: which file it came from.
    """

    name: str
    architecture: Architecture
    weights: Weights
    quality: dict[str, Any]
    source: str
    sha256: str

    def torch(self, **options: Any) -> Any:
        """A PyTorch model with these weights, in evaluation mode; options are its constructor's."""
        from common.models import transformer_torch, vision_torch
        from common.models.weights import to_torch

        kinds: dict[type, Any] = {
            Transformer: transformer_torch.TransformerLM,
            VisionTransformer: vision_torch.ViT,
            ResNet: vision_torch.ResidualNet,
        }
        model = kinds[type(self.architecture)](self.architecture, **options)
        to_torch(model, self.weights)
        return model.eval()

    def jax(self, **options: Any) -> Any:
        """A flax.nnx model with these weights, in evaluation mode; options are its constructor's."""
        from common.models import transformer_jax, vision_jax
        from common.models.weights import to_flax

        kinds: dict[type, Any] = {
            Transformer: transformer_jax.TransformerLM,
            VisionTransformer: vision_jax.ViT,
            ResNet: vision_jax.ResidualNet,
        }
        model = kinds[type(self.architecture)](self.architecture, **options)
        to_flax(model, self.weights)
        model.eval()
        return model


def names() -> list[str]:
    """The models that can be loaded."""
    return sorted(_index())


def load(name: str) -> Trained:
    """A model of the zoo, its file checked against the frozen checksum.

    Raises:
        UserError: there is no such model, or its file is missing, damaged or of another architecture.
    """
    index = _index()
    if name not in index or name not in RECIPES:
        raise UserError(f"the zoo has no model {name!r}; it has {', '.join(sorted(index))}")
    found = find(f"zoo/{name}.safetensors", index[name]["sha256"])
    weights = read(found.path)
    return Trained(name, RECIPES[name].architecture, weights, index[name]["quality"], found.source, found.sha256)


def read(path: Any) -> Weights:
    """The arrays of a safetensors file in float32."""
    import ml_dtypes  # noqa: F401 - makes bfloat16 known to NumPy
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}); replace or remove it") from error


def _index() -> dict[str, Any]:
    path = ROOT / "data" / INDEX
    return json.loads(path.read_text()) if path.exists() else {}
