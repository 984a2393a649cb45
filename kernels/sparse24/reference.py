"""The definition: each group is sorted, its two largest are picked out, and put back."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt16


def mask(weights: Shaped[np.ndarray, "rows k"], *, paired: bool = False) -> Bool[np.ndarray, "rows k"]:
    unit = 2 if paired else 1
    sizes = np.abs(weights.astype(np.float64 if weights.dtype == np.float64 else np.float32))
    if paired:
        sizes = np.where(sizes < np.finfo(sizes.dtype).tiny, 0, sizes)
    sizes = sizes.reshape(len(weights), weights.shape[1] // (4 * unit), 4, unit).sum(-1)
    best = np.argsort(-sizes, axis=-1, kind="stable")[..., :2]
    kept = np.zeros(sizes.shape, bool)
    np.put_along_axis(kept, best, True, axis=-1)
    return np.repeat(kept, unit, axis=-1).reshape(weights.shape)


def pack(
    weights: Shaped[np.ndarray, "rows k"], mask: Bool[np.ndarray, "rows k"], *, paired: bool = False
) -> tuple[Shaped[np.ndarray, "rows half"], UInt16[np.ndarray, "rows words"]]:
    unit, rows = 2 if paired else 1, len(weights)
    groups = weights.shape[1] // (4 * unit)
    first = np.argsort(~mask.reshape(rows, groups, 4, unit)[..., 0], axis=-1, kind="stable")[..., :2]
    values = np.take_along_axis(weights.reshape(rows, groups, 4, unit), first[..., None], axis=2)
    nibbles = np.pad(first[..., 0] + 4 * first[..., 1], ((0, 0), (0, -groups % 4)))
    words = (nibbles.reshape(rows, -(-groups // 4), 4) << np.arange(0, 16, 4)).sum(-1).astype(np.uint16)
    return values.reshape(rows, 2 * unit * groups), words


def unpack(
    values: Shaped[np.ndarray, "rows half"], meta: UInt16[np.ndarray, "rows words"], *, k: int, paired: bool = False
) -> Shaped[np.ndarray, "rows k"]:
    unit, rows = 2 if paired else 1, len(values)
    groups = k // (4 * unit)
    nibbles = ((meta[..., None].astype(np.int64) >> np.arange(0, 16, 4)) & 15).reshape(rows, 4 * meta.shape[1])[:, :groups]
    places = np.stack([nibbles & 3, nibbles >> 2], -1)
    weights = np.zeros((rows, groups, 4, unit), values.dtype)
    np.put_along_axis(weights, places[..., None], values.reshape(rows, groups, 2, unit), axis=2)
    return weights.reshape(rows, k)


def matmul(
    x: Float[np.ndarray, "*batch k"],
    values: Shaped[np.ndarray, "rows stored"],
    meta: UInt16[np.ndarray, "rows words"],
    scale: Float[np.ndarray, " rows"] | None = None,
    *,
    paired: bool = False,
) -> Float[np.ndarray, "*batch rows"]:
    if values.dtype == np.uint8:
        halves = np.stack([values & 15, values >> 4], -1).astype(np.int64)
        values = (halves - 16 * (halves > 7)).reshape(len(values), 2 * values.shape[1])
    weights = unpack(values, meta, k=x.shape[-1], paired=paired).astype(x.dtype)
    return x @ weights.T * (1 if scale is None else scale)
