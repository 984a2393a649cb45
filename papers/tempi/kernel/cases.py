"""Inputs of packing: one to five loops, all word sizes, odd starts, overlaps, loops that run backwards or out of order, nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"uint8": 0.0}

LOOPS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "line": (3, (37,), (1,), 64),
    "rows of 8 words": (64, (64, 20), (1, 512), 11_000),
    "rows of bytes": (0, (1, 300), (1, 7), 2100),
    "rows of 2, odd start": (1, (2, 50), (1, 10), 600),
    "box": (16, (24, 5, 3), (1, 32, 256), 1024),
    "objects": (8, (8, 3, 2, 4, 2), (1, 16, 64, 256, 2048), 4096),
    "transposed": (0, (8, 6, 9), (1, 72, 8), 432),
    "backwards": (400, (4, 6, 3), (1, -20, 200), 900),
    "wide": (0, (3000, 2), (1, 3001), 6001),
    "nothing": (0, (4, 0), (1, 8), 16),
}
"""name: start, counts, strides, bytes of the memory"""

OVERLAPPING = (0, (16, 10), (1, 4), 52)


def _pack(start: int, counts: tuple[int, ...], strides: tuple[int, ...], size: int) -> Callable[[Any], dict[str, Any]]:
    loops = {"start": start, "counts": counts, "strides": strides}
    return lambda rng: {"source": rng.integers(0, 256, size, dtype=np.uint8), **loops}


def _unpack(start: int, counts: tuple[int, ...], strides: tuple[int, ...], size: int) -> Callable[[Any], dict[str, Any]]:
    loops = {"start": start, "counts": counts, "strides": strides}
    packed = math.prod(counts)
    return lambda rng: {
        "packed": rng.integers(0, 256, packed, dtype=np.uint8),
        "target": rng.integers(0, 256, size, dtype=np.uint8),
        **loops,
    }


_LARGE = (0, (64, 2**14), (1, 512), 2**23)

CASES = {
    "strided_pack": [
        *(Case(name, _pack(*loops), EXACT) for name, loops in LOOPS.items()),
        Case("overlapping", _pack(*OVERLAPPING), EXACT),
        Case("large", _pack(*_LARGE), EXACT, large=True),
    ],
    "strided_unpack": [
        *(Case(name, _unpack(*loops), EXACT) for name, loops in LOOPS.items()),
        Case("large", _unpack(*_LARGE), EXACT, large=True),
    ],
}


def _contiguous(source: Any, start: int, counts: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """What a user of PyTorch would write."""
    import torch

    return torch.as_strided(source, counts[::-1], strides[::-1], start).contiguous().view(-1)


PEERS = {"strided_pack": {"as_strided().contiguous()": _contiguous}}
