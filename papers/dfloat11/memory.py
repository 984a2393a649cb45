"""What a model weighs in the format, how long a context then fits, and how fast it is beside one that overflows the card."""

from __future__ import annotations

import numpy as np

from common.architecture import Transformer
from papers.dfloat11 import published

BFLOAT16 = 2


def sizes(a: Transformer, bits: float | int) -> dict[str, float | int]:
    """Bytes in bfloat16, bytes with all matrices at ``bits`` a weight, and of the largest unit once decoded."""
    parts = a.breakdown()
    norms = parts["norms"]
    matrices = a.parameters() - norms
    block = (parts["attention"] + parts["feed_forward"]) // a.depth
    return {
        "bfloat16": BFLOAT16 * a.parameters(),
        "dfloat11": bits / 8 * matrices + BFLOAT16 * norms,
        "buffer": BFLOAT16 * max(block, parts["embedding"]),
    }


def context_gain(a: Transformer, bits: float | int, memory: float, overheads: np.ndarray) -> np.ndarray:
    """How many times as many tokens fit beside the weights: (memory - dfloat11 - buffer - o) / (memory - bfloat16 - o)."""
    found = sizes(a, bits)
    return (memory - found["dfloat11"] - found["buffer"] - overheads) / (memory - found["bfloat16"] - overheads)


def offload_gain(memory: float, bits: float | int, overflow: float, copy: float, batch: int, context: int = 1024) -> float:
    """Tokens a second of DFloat11 on the card over those of bfloat16 with the rest of the weights copied in every step.

    A step of bfloat16 copies what does not fit and reads all weights; one of DFloat11 decodes all weights and reads them.
    Both read the KV cache and compute 2 operations for each weight and row. The weights are so many that in bfloat16 the
    share ``overflow`` does not fit; at most 1 - bits / 16 of them, or DFloat11 does not fit either (NaN).

    Args:
        memory: bytes of the card that weights may take.
        copy: bytes a second from the host.
    """
    card = published.A100_40GB
    weights = memory / (1 - overflow)
    if weights * bits / 16 > memory:
        return float("nan")
    # A cache of the proportions of Llama 3.1 70B: 0.33 MB a token for 141 GB of weights.
    cache = batch * context * weights * 2.3e-6
    shared = (weights + cache) / card["bytes_per_second"]
    compute = weights * batch / card["flops"]
    with_copy = overflow * weights / copy + max(shared, compute)
    decoded = weights / published.DECODED_PER_SECOND + max(shared, compute)
    return with_copy / decoded


def offload_sweep(bits: float | int) -> list[dict[str, float | str]]:
    """:func:`offload_gain` over copies, overflows and batch sizes, where DFloat11 fits."""
    rows: list[dict[str, float | str]] = []
    memory = 0.9 * published.A100_40GB["bytes"]
    for name, copy in published.COPIES.items():
        for overflow in (0.1, 0.15, 0.2, 0.25, 0.3, 0.315):
            for batch in (1, 4, 16, 64, 128):
                gain = offload_gain(memory, bits, overflow, copy, batch)
                if np.isfinite(gain):
                    rows.append({"copy": name, "overflow": overflow, "batch": batch, "gain": gain})
    return rows
