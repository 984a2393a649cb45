"""The compressed model as one safetensors file, which is what is evaluated; both frameworks write and read the same.

A compressed layer has ``<layer>.values``, ``.meta``, ``.scale`` and, where activations are quantised too, ``.input_scale``.
All other parameters keep their names, in float16. The note holds the shape of the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError
from common.architecture import VisionTransformer
from common.checkpoint import seal, unseal
from papers.gpusq_vit.compress import Packed

VERSION = 1


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed network.

    Attributes:
        layers: packed weights by layer.
        input_scales: float32, the step of the inputs of each layer; empty: inputs are not quantised.
        others: all other parameters by name, float16.
        architecture: what the matrices belong to; None: no model of this repository.
    """

    layers: dict[str, Packed]
    input_scales: dict[str, float]
    others: dict[str, np.ndarray]
    bits: int
    architecture: VisionTransformer | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(each.nbytes for each in [*self.layers.values(), *self.others.values()]) + 4 * len(self.input_scales)

    def save(self, path: Path) -> int:
        """Write the file, whole or not at all; returns its size in bytes."""
        arrays = dict(self.others)
        for name, layer in self.layers.items():
            arrays |= {f"{name}.values": layer.values, f"{name}.meta": layer.meta}
            if layer.scale is not None:
                arrays[f"{name}.scale"] = layer.scale
            if name in self.input_scales:
                arrays[f"{name}.input_scale"] = np.array([self.input_scales[name]], np.float32)
        note = {
            "version": VERSION,
            "bits": self.bits,
            "columns": {name: layer.k for name, layer in self.layers.items()},
            "architecture": self.architecture and dataclasses.asdict(self.architecture),
        }
        return seal(path, "sparse24", arrays, note)


def load(path: Path) -> Compressed:
    """Read a file that :meth:`Compressed.save` has written.

    Raises:
        UserError: it is damaged, cut short, of another version, or its parts do not fit each other.
    """
    try:
        arrays, note = unseal(path, "sparse24")
        if note["version"] != VERSION:
            raise ValueError(f"it is of version {note['version']}, this reads version {VERSION}")
        layers, input_scales = {}, {}
        for name, k in note["columns"].items():
            scale = arrays.pop(f"{name}.scale", None)
            layers[name] = Packed(arrays.pop(f"{name}.values"), arrays.pop(f"{name}.meta"), scale, k, note["bits"])
            if f"{name}.input_scale" in arrays:
                input_scales[name] = float(arrays.pop(f"{name}.input_scale")[0])
        architecture = note["architecture"] and VisionTransformer(**note["architecture"])
        return Compressed(layers, input_scales, arrays, note["bits"], architecture)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no whole compressed model ({error}); export it again") from error


def others(weights: dict[str, np.ndarray], layers: Any) -> dict[str, np.ndarray]:
    """What the file keeps beside the packed matrices, in float16."""
    packed = {f"{name}.weight" for name in layers}
    return {name: array.astype(np.float16) for name, array in weights.items() if name not in packed}
