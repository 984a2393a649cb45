"""What a byte language model must beat to count as trained: n-grams with the best smoothing, gzip and xz."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
from jaxtyping import Float64, Int64, UInt8


def ngram_bits(train: UInt8[np.ndarray, " train"], held_out: UInt8[np.ndarray, " held"], order: int = 5) -> float:
    """Bits per byte of the held-out text under an n-gram model with ``order`` bytes of context, in interpolated modified
    Kneser-Ney smoothing (Chen and Goodman 1999, section 3): for the context h with its first byte cut off in h',

        p(w | h) = (c(hw) - D(c(hw)) + (D1 N1(h) + D2 N2(h) + D3 N3+(h)) p(w | h')) / c(h)

    where c counts occurrences at the highest order and distinct preceding bytes below it, N1, N2, N3+ are the followers of
    h seen once, twice, more often, and the discounts come from the counts of counts. Below the shortest context all 256
    bytes are alike. The first ``order`` bytes are not counted.
    """
    if not 0 <= order <= 6:
        raise ValueError(f"an n-gram of order + 1 bytes is kept in 63 bits, so order is from 0 to 6, not {order}")
    if len(train) <= order + 1 or len(held_out) <= order:
        raise ValueError(f"order {order} needs texts longer than {order + 1} bytes, not {len(train)} and {len(held_out)}")
    probability = np.full(len(held_out) - order, 1 / 256)
    for context in range(order + 1):
        grams, counts = np.unique(_grams(train, context + 1), return_counts=True)
        if context < order:
            longer = np.unique(_grams(train, context + 2))
            grams, counts = np.unique(longer & ((1 << 8 * (context + 1)) - 1), return_counts=True)
        probability = _interpolate(grams, counts, _grams(held_out, context + 1)[order - context :], probability)
    return float(-np.log2(probability).mean())


def compressor_bits(train: UInt8[np.ndarray, " train"], held_out: UInt8[np.ndarray, " held"]) -> dict[str, float]:
    """Bits per byte of the held-out text when gzip or xz, at their strongest, have read the training text first: the
    growth of the compressed size of one file. (gzip looks back 32 KiB, xz over all of it.)"""
    first, both = train.tobytes(), train.tobytes() + held_out.tobytes()
    preset = 9 | lzma.PRESET_EXTREME
    return {
        "gzip": (len(gzip.compress(both, 9)) - len(gzip.compress(first, 9))) * 8 / len(held_out),
        "xz": (len(lzma.compress(both, preset=preset)) - len(lzma.compress(first, preset=preset))) * 8 / len(held_out),
    }


def _grams(text: UInt8[np.ndarray, " bytes"], length: int) -> Int64[np.ndarray, " grams"]:
    """Every run of ``length`` bytes as one number, the first byte highest."""
    grams = np.zeros(len(text) - length + 1, np.int64)
    for place in range(length):
        grams = grams << 8 | text[place : len(text) - length + 1 + place]
    return grams


def _interpolate(
    grams: Int64[np.ndarray, " n"],
    counts: Int64[np.ndarray, " n"],
    wanted: Int64[np.ndarray, " held"],
    shorter: Float64[np.ndarray, " held"],
) -> Float64[np.ndarray, " held"]:
    n1, n2, n3, n4 = np.bincount(counts.clip(max=5), minlength=6)[1:5].clip(1).tolist()
    y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]).clip(0)
    discount = discounts[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> 8, return_index=True)  # grams are sorted, so each context is one run
    total, left = np.add.reduceat(counts, first), np.add.reduceat(discount, first)

    gram = np.searchsorted(grams, wanted).clip(max=len(grams) - 1)
    seen = np.where(grams[gram] == wanted, counts[gram] - discount[gram], 0.0)
    context = np.searchsorted(contexts, wanted >> 8).clip(max=len(contexts) - 1)
    known = contexts[context] == wanted >> 8
    return np.where(known, (seen + left[context] * shorter) / total[context], shorter)
