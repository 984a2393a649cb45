"""The exported network: one safetensors file of integers, its JSON notes (units, N, widths, shapes; no factor is a float) and a
checksum of both. Factors m and e lie among the arrays as ``<quantiser>.m`` and ``.e``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from common import UserError
from common.checkpoint import seal, unseal

VERSION = 1
KINDS = ("int8", "int16", "int32")


@dataclass(frozen=True, eq=False)
class Exported:
    """Integers by name and notes. The scales of input and output stand in the notes in hexadecimal: the input's belongs to the
    quantiser before the engine, the output's to who wants logits as real numbers."""

    arrays: dict[str, np.ndarray]
    notes: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, factors included; shifts need a byte each."""
        return sum(array.size if name.endswith(".e") else array.nbytes for name, array in self.arrays.items())

    def quantise(self, x: np.ndarray) -> Int[np.ndarray, "*shape"]:
        """The input quantiser: the last floating-point numbers."""
        scale, bits = float.fromhex(self.notes["input_scale"]), self.notes["input_bits"]
        codes = np.clip(np.floor(np.asarray(x, np.float64) / scale + 0.5), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return codes.astype({8: np.int8, 16: np.int16}[bits])

    def torch(self) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(array.copy()) for name, array in self.arrays.items()}

    def jax(self) -> dict[str, Any]:
        import jax.numpy as jnp

        return {name: jnp.asarray(array) for name, array in self.arrays.items()}

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        # Shifts are at most 62.
        arrays = {name: array.astype(np.int8) if name.endswith(".e") else array for name, array in self.arrays.items()}
        seal(path, "i_vit", arrays, {"version": VERSION, **self.notes})


def load(path: Path) -> Exported:
    """Read a file that :meth:`Exported.save` has written.

    Raises:
        UserError: it is damaged, cut short, of another version, or holds anything but integers.
    """
    try:
        arrays, notes = unseal(path, "i_vit")
        if notes.pop("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        wrong = [name for name, array in arrays.items() if array.dtype.name not in KINDS]
        if wrong:
            raise ValueError(f"{wrong[0]} is {arrays[wrong[0]].dtype}, not an integer")
        return Exported({n: a.astype(np.int32) if n.endswith(".e") else a for n, a in arrays.items()}, notes)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no whole file of an integer network ({error}); export it again") from error
