"""Packed layers as arrays and as one file that both frameworks read, with the authors' names: ``<layer>.B`` and ``<layer>.s``.

The note holds the shape of each layer before it was padded to the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError
from common.checkpoint import seal, unseal
from common.gptq import Rounded
from common.ops import framework
from kernels.gemm_w4a16 import GROUP, check_packed, pack

VERSION = 1


@dataclass(frozen=True, eq=False)
class Packed:
    """One linear layer in the format.

    Attributes:
        words: int32 (k / 16, 2 n), k and n padded.
        scales: float16 (k / 128, n), or (1, n) with group -1, stored order.
        outputs, inputs: n and k as the layer has them.
        group: 128 or -1.
    """

    words: Any
    scales: Any
    outputs: int
    inputs: int
    group: int = GROUP

    @classmethod
    def of(cls, rounded: Rounded, shape: tuple[int, ...], group: int = GROUP) -> Packed:
        """From what :mod:`common.gptq` returns for weights of this shape, (n, k), that :func:`padded` has padded."""
        codes, scales = rounded.codes.T, rounded.scales.T
        if framework(codes) == "torch":
            codes, scales = codes.contiguous(), scales.contiguous()
        words, stored = pack(codes, scales, group=group)
        return cls(words, stored, outputs=shape[0], inputs=shape[1], group=group)

    @property
    def nbytes(self) -> int:
        return int(self.words.nbytes + self.scales.nbytes)


def padded(outputs: int, inputs: int) -> tuple[int, int]:
    """n and k as the format wants them."""
    return -(-outputs // 256) * 256, -(-inputs // GROUP) * GROUP


def save(path: Path, layers: Mapping[str, Packed]) -> None:
    """Write the file, whole or not at all; layers of either framework."""
    arrays = {}
    for name, layer in layers.items():
        arrays[f"{name}.B"], arrays[f"{name}.s"] = np.asarray(layer.words), np.asarray(layer.scales)
    shapes = {name: [layer.outputs, layer.inputs, layer.group] for name, layer in layers.items()}
    seal(path, "marlin", arrays, {"version": VERSION, "layers": shapes})


def load(path: Path) -> dict[str, Packed]:
    """The layers of a file as NumPy arrays.

    Raises:
        UserError: it is damaged, cut short, of another version, or a layer does not fit the format.
    """
    try:
        arrays, notes = unseal(path, "marlin")
        if notes["version"] != VERSION:
            raise ValueError(f"it is of version {notes['version']}, this reads version {VERSION}")
        layers = {}
        for name, (outputs, inputs, group) in notes["layers"].items():
            words, scales = arrays[f"{name}.B"], arrays[f"{name}.s"]
            check_packed(name, words, scales, group)
            if padded(outputs, inputs) != (words.shape[1] // 2, 16 * words.shape[0]):
                raise ValueError(
                    f"layer {name!r} is {outputs} x {inputs}, its words hold {words.shape[1] // 2} x {16 * len(words)}"
                )
            layers[name] = Packed(words, scales, outputs, inputs, group)
        return layers
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is no whole file of packed layers ({error}); write it again") from error
