"""The definition: a table of single bits, one row for each value."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8


def pack(values: UInt8[np.ndarray, "*rows count"], *, bits: int, high_first: bool = True) -> UInt8[np.ndarray, "*rows bytes"]:
    *rows, count = values.shape
    if high_first:
        stream = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :]
    else:
        stream = np.unpackbits(values[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(stream.reshape(*rows, count * bits), axis=-1, bitorder="big" if high_first else "little")


def unpack(
    packed: UInt8[np.ndarray, "*rows bytes"], *, bits: int, count: int, high_first: bool = True
) -> UInt8[np.ndarray, "*rows count"]:
    order: Literal["big", "little"] = "big" if high_first else "little"
    stream = np.unpackbits(packed, axis=-1, bitorder=order)[..., : count * bits]
    stream = stream.reshape(*packed.shape[:-1], count, bits)
    padding = [(0, 0)] * (stream.ndim - 1) + [(8 - bits, 0) if high_first else (0, 8 - bits)]
    return np.packbits(np.pad(stream, padding), axis=-1, bitorder=order)[..., 0]
