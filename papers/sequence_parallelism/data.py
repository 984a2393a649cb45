"""Batches for the masked-token and sentence-order losses from the bytes of a text, and the chunk of a rank."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

PAD, FIRST, BETWEEN, MASKED = 256, 257, 258, 259
"""Tokens beside the 256 bytes: filling, the start of a sequence, the border of its segments, a hidden byte."""

IGNORED = -100
"""The label of a token that is not asked for."""


class Batch(NamedTuple):
    """
    Attributes:
        tokens, labels, segments: of a chunk, or of whole sequences.
        order: 0 where the segments stand as in the text, 1 where they are swapped.
        asked: masked tokens in the whole batch, on all ranks.
        rows: sequences in the whole batch.
        start: position of the first token.
        seen: which tokens of the *whole* sequences are no filling; None: all.
    """

    tokens: Int64[np.ndarray, "batch chunk"]
    labels: Int64[np.ndarray, "batch chunk"]
    segments: Int64[np.ndarray, "batch chunk"]
    order: Int64[np.ndarray, " batch"]
    asked: int
    rows: int
    start: int = 0
    seen: Bool[np.ndarray, "batch length"] | None = None


def masked_batch(text: UInt8[np.ndarray, " bytes"], batch: int, length: int, seed: int, step: int) -> Batch:
    """Two neighbouring segments each, swapped in half of the rows; 15 % of the bytes are asked for, of which 80 % are hidden
    and 10 % changed (Devlin et al. 2019, section 3.1; order: Lan et al. 2020, section 3.1). Depends on seed and step alone."""
    rng = np.random.default_rng((seed, step))
    first = (length - 2) // 2
    starts = rng.integers(0, len(text) - length, batch)
    window = text[starts[:, None] + np.arange(length - 2)].astype(np.int64)
    order = rng.integers(0, 2, batch)
    one, two = window[:, :first], window[:, first:]
    # Segments differ by a byte in length where the length is odd, so a swap moves the border.
    border = np.where(order == 1, length - 2 - first, first)
    tokens = np.full((batch, length), FIRST)
    for row in range(batch):
        parts = (two[row], [BETWEEN], one[row]) if order[row] else (one[row], [BETWEEN], two[row])
        tokens[row, 1:] = np.concatenate(parts)
    segments = (np.arange(length) > border[:, None] + 1).astype(np.int64)
    asked = (rng.random(tokens.shape) < 0.15) & (tokens < PAD)
    labels = np.where(asked, tokens, IGNORED)
    draw = rng.random(tokens.shape)
    hidden = np.where(draw < 0.8, MASKED, np.where(draw < 0.9, rng.integers(0, 256, tokens.shape), tokens))
    return Batch(np.where(asked, hidden, tokens), labels, segments, order, int(asked.sum()), batch)


def chunk(batch: Batch, rank: int, size: int, pad: bool = False) -> Batch:
    """Chunk ``rank`` of ``size`` of every sequence; ``pad`` fills them up to a length that can be divided.

    Raises:
        ValueError: the length cannot be divided, and is not to be padded.
    """
    length = batch.tokens.shape[1]
    missing = -length % size
    if missing and not pad:
        raise ValueError(
            f"{size} ranks cannot share {length} tokens evenly; pad by {missing} to {length + missing} (pad=True does, and hides them)"
        )
    filled = [
        np.pad(each, ((0, 0), (0, missing)), constant_values=value)
        for each, value in ((batch.tokens, PAD), (batch.labels, IGNORED), (batch.segments, 1))
    ]
    seen = batch.seen
    if missing:
        before = np.ones(batch.tokens.shape, bool) if seen is None else seen
        seen = np.pad(before, ((0, 0), (0, missing)))
    each = (length + missing) // size
    mine = slice(rank * each, (rank + 1) * each)
    return batch._replace(
        tokens=filled[0][:, mine], labels=filled[1][:, mine], segments=filled[2][:, mine], start=rank * each, seen=seen
    )


def rows(batch: Batch, rank: int, size: int) -> Batch:
    """Part ``rank`` of ``size`` of the sequences; what is counted in the whole batch stays.

    Raises:
        ValueError: the sequences cannot be divided.
    """
    count = len(batch.tokens)
    if count % size:
        raise ValueError(f"{size} parts cannot share {count} sequences evenly; wanted a multiple of {size}")
    mine = slice(rank * count // size, (rank + 1) * count // size)
    seen = None if batch.seen is None else batch.seen[mine]
    whole = {"tokens": batch.tokens[mine], "labels": batch.labels[mine], "segments": batch.segments[mine]}
    return batch._replace(**whole, order=batch.order[mine], seen=seen)
