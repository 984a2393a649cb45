"""The definition: the authors' permutation of the kept codes, and their offsets of the metadata, as they are given."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Bool, Float, Int8, Int16, Int32

INTERLEAVE = (0, 2, 4, 6, 1, 3, 5, 7)


def sparse_pack(
    codes: Int8[np.ndarray, "k n"], scales: Float[np.ndarray, "groups n"], mask: Bool[np.ndarray, "k n"], *, group: int = 128
) -> tuple[Int32[np.ndarray, "tiles words"], Int16[np.ndarray, "tiles words"], Float[np.ndarray, "groups n"]]:
    k, n = codes.shape
    kept = codes.T[mask.T].reshape(n, k // 2).T
    tiles = kept.reshape(k // 32, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 1024)
    nibbles = (tiles[:, places()] + 8).astype(np.uint32).reshape(k // 32, 2 * n, 8)
    words = np.bitwise_or.reduce(nibbles << (4 * np.arange(8, dtype=np.uint32)), axis=-1)
    where = np.nonzero(mask.T.reshape(-1, 4))[1].reshape(n, k // 16, 8).astype(np.uint32)
    found = np.bitwise_or.reduce(where << (2 * np.arange(8, dtype=np.uint32)), axis=-1).astype(np.uint16)
    meta = np.empty(n * k // 16, np.uint16)
    meta[offsets(n, k // 16)] = found.reshape(-1)
    order = scale_places(len(scales) == 1)
    stored = scales.reshape(-1, len(order))[:, order].reshape(scales.shape)
    return words.view(np.int32), meta.view(np.int16).reshape(k // 32, 2 * n), stored


def sparse_unpack(
    values: Int32[Any, "tiles words"], meta: Int16[Any, "tiles words"], scales: Float[Any, "groups n"], *, group: int = 128
) -> tuple[Int8[Any, "k n"], Float[Any, "groups n"], Bool[Any, "k n"]]:
    xp = array_namespace(values)
    k, n = 32 * values.shape[0], values.shape[1] // 2
    nibbles = values[:, :, None] >> xp.asarray(4 * np.arange(8, dtype=np.int32)) & 15
    tiles = xp.reshape(nibbles, (-1, 1024))[:, xp.asarray(np.argsort(places()))]
    kept = xp.permute_dims(xp.reshape(tiles, (k // 32, n // 16, 16, 16)), (0, 2, 1, 3)) - 8
    kept = xp.reshape(xp.reshape(kept, (k // 2, n)).T, (n, k // 4, 2))
    words = xp.astype(xp.reshape(meta, (-1,)), xp.int32)[xp.asarray(offsets(n, k // 16))]
    where = xp.reshape(words[:, None] >> xp.asarray(2 * np.arange(8, dtype=np.int32)) & 3, (n, k // 4, 2))
    hits = where[..., None] == xp.arange(4)
    codes = xp.sum(xp.where(hits, kept[..., None], xp.zeros_like(kept)[..., None]), axis=2)
    order = xp.asarray(np.argsort(scale_places(len(scales) == 1)))
    natural = xp.reshape(xp.reshape(scales, (-1, order.shape[0]))[:, order], scales.shape)
    mask = xp.any(hits, axis=2)
    return xp.astype(xp.reshape(codes, (n, k)).T, xp.int8), natural, xp.reshape(mask, (n, k)).T


def sparse_matmul(
    x: Float[Any, "*batch k"],
    values: Int32[Any, "tiles words"],
    meta: Int16[Any, "tiles words"],
    scales: Float[Any, "groups n"],
    *,
    group: int = 128,
) -> Float[Any, "*batch n"]:
    xp = array_namespace(x)
    codes, scales, _ = sparse_unpack(values, meta, scales)
    k, n = codes.shape
    whole = xp.astype(xp.reshape(codes, (scales.shape[0], -1, n)), scales.dtype) * scales[:, None, :]
    return x @ xp.astype(xp.reshape(whole, (k, n)), x.dtype)


@cache
def places() -> np.ndarray:
    """Which of the 1024 values of four neighbouring tiles stands at each place: 32 threads, 4 columns, 8 values."""
    order = []
    for thread in range(32):
        column, pair = divmod(thread, 4)
        rows = (2 * pair, 2 * pair + 1, 2 * (pair + 4), 2 * (pair + 4) + 1)
        eight = [16 * row + 256 * (column // 2) + 8 * (column % 2) + 4 * block for block in (0, 1) for row in rows]
        order += [j + eight[value] for j in range(4) for value in INTERLEAVE]
    return np.array(order)


@cache
def offsets(n: int, words: int) -> np.ndarray:
    """Where the authors keep the word in row ``row`` (an output) and column ``column`` of (n, words), row by row: rows of 64 are
    reordered, blocks of 2 x 2 are turned, and two columns are interleaved, column by column."""
    row, column = (each.reshape(-1) for each in np.mgrid[:n, :words])
    row = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
    turned = column % 2 - row % 2
    row, column = row + turned, column - turned
    return column // 2 * 2 * n + 2 * row + column % 2


@cache
def scale_places(single: bool) -> np.ndarray:
    if single:
        return np.arange(64)
    return np.array([8 * i + j for i in range(8) for j in (0, 4, 1, 5, 2, 6, 3, 7)])
