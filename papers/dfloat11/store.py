"""Compressed checkpoints: one safetensors file that every framework reads, with the names of the authors' package.

A unit's arrays are ``<unit>.luts``, ``.encoded_exponent``, ``.gaps``, ``.output_positions``, ``.sign_mantissa`` and
``.split_positions``; what is not compressed keeps its name. The note holds which parameters a unit has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Int16

from common import UserError
from common.checkpoint import seal, unseal
from papers.dfloat11.codec import THREADS, Unit, encode, fits
from papers.dfloat11.kernel.layout import BYTES

PATTERNS = (r"blocks\.\d+", r"embedding", r"positions", r"head")
"""Units of the models of this repository: each block is one, and so is each table."""

_FILE = {
    "tables": "luts",
    "stream": "encoded_exponent",
    "gaps": "gaps",
    "positions": "output_positions",
    "sign_mantissa": "sign_mantissa",
}
VERSION = 1


@dataclass(frozen=True, eq=False)
class Compressed:
    """A checkpoint in the format.

    Attributes:
        units: by name.
        members: for each unit its parameters in order, with their shapes.
        raw: parameters that are kept as they are, bfloat16 (norms, and units that no code fits).
    """

    units: dict[str, Unit]
    members: dict[str, dict[str, tuple[int, ...]]]
    raw: dict[str, np.ndarray]

    @property
    def count(self) -> int:
        """Weights in the units."""
        return sum(unit.sign_mantissa.size for unit in self.units.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(unit.nbytes for unit in self.units.values()) + sum(array.nbytes for array in self.raw.values())

    def decode(self) -> dict[str, np.ndarray]:
        """All parameters, bfloat16."""
        found = dict(self.raw)
        for name, unit in self.units.items():
            found |= cut(unit.decode(), self.members[name])
        return found

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        arrays = dict(self.raw)
        for name, unit in self.units.items():
            for mine, theirs in _FILE.items():
                array = getattr(unit, mine)
                arrays[f"{name}.{theirs}"] = array.view(np.uint32) if mine == "positions" else array
            sizes = [int(np.prod(shape)) for shape in self.members[name].values()]
            arrays[f"{name}.split_positions"] = np.cumsum(sizes)[:-1].astype(np.int64)
        units = {
            name: {"threads_per_block": unit.threads, "members": [[n, list(s)] for n, s in self.members[name].items()]}
            for name, unit in self.units.items()
        }
        seal(path, "dfloat11", arrays, {"version": VERSION, "bytes_per_thread": BYTES, "units": units})


def compress(
    weights: Mapping[str, np.ndarray], patterns: Iterable[str] = PATTERNS, threads: int = THREADS, raw: bool = False
) -> Compressed:
    """Compress the matrices of a checkpoint, those whose names begin with the same match of a pattern as one unit.

    Args:
        weights: bfloat16 by name; vectors and names that no pattern matches stay as they are.
        patterns: regular expressions, matched at the beginning of names.
        raw: keep a unit as it is if no code fits it, instead of refusing it.

    Raises:
        UserError: a weight that is not bfloat16; a pattern that matches no matrix; a unit that no code fits.
    """
    for name, array in weights.items():
        if array.dtype != ml_dtypes.bfloat16:
            raise UserError(f"{name!r} is {array.dtype}; the format holds bfloat16, convert the model to it first")
    members: dict[str, dict[str, tuple[int, ...]]] = {}
    patterns = list(patterns)
    matched = set()
    for name, array in weights.items():
        for pattern in patterns:
            if array.ndim >= 2 and (match := re.match(pattern, name)):
                matched.add(pattern)
                members.setdefault(match[0], {})[name] = array.shape
                break
    if patterns and not matched:
        some = ", ".join(name for name, array in weights.items() if array.ndim >= 2)
        raise UserError(f"no matrix has a name that begins with {' or '.join(patterns)}; there are {some}")
    units = {}
    for unit in list(members):
        bits = np.concatenate([weights[name].reshape(-1).view(np.int16) for name in members[unit]])
        if raw and not fits(bits):
            del members[unit]
        else:
            units[unit] = encode(bits, unit, threads)
    inside = {name for names in members.values() for name in names}
    return Compressed(units, members, {name: np.array(array) for name, array in weights.items() if name not in inside})


def load(path: Path) -> Compressed:
    """Read a file that :meth:`Compressed.save` has written.

    Raises:
        UserError: it is damaged, cut short, of another version, or made for another number of bytes a thread.
    """
    try:
        arrays, known = unseal(path, "dfloat11")
        if known["version"] != VERSION or known["bytes_per_thread"] != BYTES:
            raise ValueError(
                f"it is of version {known['version']} with {known['bytes_per_thread']} bytes a thread, "
                f"this reads version {VERSION} with {BYTES}"
            )
        units, members = {}, {}
        for name, note in known["units"].items():
            parts = {mine: arrays.pop(f"{name}.{theirs}") for mine, theirs in _FILE.items()}
            parts["positions"] = parts["positions"].view(np.int32)
            del arrays[f"{name}.split_positions"]
            units[name] = Unit(**parts, threads=note["threads_per_block"])
            members[name] = {each: tuple(shape) for each, shape in note["members"]}
        return Compressed(units, members, arrays)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no whole DFloat11 file ({error}); write it again") from error


def cut(bits: Int16[np.ndarray, " count"], members: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters of a unit, as views of its decoded bits."""
    found, start = {}, 0
    for name, shape in members.items():
        size = int(np.prod(shape))
        found[name] = bits[start : start + size].view(ml_dtypes.bfloat16).reshape(shape)
        start += size
    return found


def bfloat16(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights rounded to bfloat16."""
    return {name: np.asarray(array).astype(ml_dtypes.bfloat16) for name, array in weights.items()}
