"""The definition, as the paper and its packer give it: four steps and a table of 1024 places."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int8, Int32

INTERLEAVE = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(
    codes: Int8[np.ndarray, "k n"], scales: Float[np.ndarray, "groups n"], *, group: int = 128
) -> tuple[Int32[np.ndarray, "tiles words"], Float[np.ndarray, "groups n"]]:
    k, n = codes.shape
    tiles = codes.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    nibbles = (tiles[:, places()] + 8).astype(np.uint32).reshape(k // 16, 2 * n, 8)
    words = np.bitwise_or.reduce(nibbles << (4 * np.arange(8, dtype=np.uint32)), axis=-1)
    order = scale_places(len(scales) == 1)
    return words.view(np.int32), scales.reshape(-1, len(order))[:, order].reshape(scales.shape)


def unpack(
    packed: Int32[Any, "tiles words"], scales: Float[Any, "groups n"], *, group: int = 128
) -> tuple[Int8[Any, "k n"], Float[Any, "groups n"]]:
    xp = array_namespace(packed)
    k, n = 16 * packed.shape[0], packed.shape[1] // 2
    nibbles = packed[:, :, None] >> xp.asarray(4 * np.arange(8, dtype=np.int32)) & 15
    tiles = xp.reshape(nibbles, (-1, 1024))[:, xp.asarray(np.argsort(places()))]
    codes = xp.permute_dims(xp.reshape(tiles, (k // 16, n // 16, 16, 16)), (0, 2, 1, 3)) - 8
    order = xp.asarray(np.argsort(scale_places(len(scales) == 1)))
    natural = xp.reshape(xp.reshape(scales, (-1, order.shape[0]))[:, order], scales.shape)
    return xp.astype(xp.reshape(codes, (k, n)), xp.int8), natural


def dequantize(packed: Int32[Any, "tiles words"], scales: Float[Any, "groups n"], *, group: int = 128) -> Float[Any, "k n"]:
    xp = array_namespace(scales)
    codes, scales = unpack(packed, scales)
    k, n = codes.shape
    whole = xp.astype(xp.reshape(codes, (scales.shape[0], -1, n)), scales.dtype) * scales[:, None, :]
    return xp.reshape(whole, (k, n))


def matmul(
    x: Float[Any, "*batch k"], packed: Int32[Any, "tiles words"], scales: Float[Any, "groups n"], *, group: int = 128
) -> Float[Any, "*batch n"]:
    xp = array_namespace(x)
    return x @ xp.astype(dequantize(packed, scales), x.dtype)


@cache
def places() -> np.ndarray:
    """Which of the 1024 values of four neighbouring tiles stands at each place: 32 threads, 4 tiles, 8 values."""
    order = []
    for thread in range(32):
        column, pair = divmod(thread, 4)
        rows = (2 * pair, 2 * pair + 1, 2 * (pair + 4), 2 * (pair + 4) + 1)
        eight = [16 * row + column + 8 * block for block in (0, 1) for row in rows]
        order += [256 * tile + eight[value] for tile in range(4) for value in INTERLEAVE]
    return np.array(order)


@cache
def scale_places(single: bool) -> np.ndarray:
    if single:
        return np.array([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])
    return np.array([i + 8 * j for i in range(8) for j in range(8)])
