"""The paper's own inputs, and published figures that its formulas are fed with; nothing that is predicted stands here."""

from __future__ import annotations

from typing import NamedTuple

from common.architecture import Transformer

YI_34B = Transformer(
    vocabulary=64_000, width=7168, depth=60, heads=56, kv_heads=8, head_dim=128, hidden=20_480, context=200_000, tied=False
)
"""Yi-34B-200K: the running example (paper, section 2; the shapes are those of the model's published configuration)."""

PARAMETERS = 34e9
"""The paper's round number (section 2); the shapes have 34.39e9."""

COMPUTE, BANDWIDTH, MEMORY = 312e12, 2e12, 80 * 2**30
"""A100-80: bfloat16 FLOP/s and bytes/s as the paper rounds them (section 2), and its memory in bytes (80 GiB)."""
MEMORY_DECIMAL = 80e9
"""The same memory if GB is taken at its word."""
LINK = 20e9
"""Bytes/s that the paper takes PCIe 4 to move (section 2; from memory)."""

SIMPLIFIED_WIDTH = 4096
"""The factor in the paper's short form of prefill, n (2 P + 2 layers n 4096); from memory."""

SHORT, LONG, MIDDLE, MILLION = 4_000, 50_000, 100_000, 1_000_000
"""Tokens: 4K, 50K, 100K and 1M of the paper's examples."""
ANSWER = 250
"""Tokens of an answer (section 2)."""


class Sheet(NamedTuple):
    """A device that `common.hardware` does not have; FLOP/s, bytes/s, bytes, bytes/s, and where from."""

    compute: float
    bandwidth: float
    memory: float
    link: float
    source: str


MI300X = Sheet(1307.4e12, 5.3e12, 192 * 2**30, 50e9, "AMD Instinct MI300X data sheet, bfloat16 dense; PCIe 5 as usable, assumed")


class Idea(NamedTuple):
    """A published compression: the axis it shrinks, and bytes after over bytes before."""

    axis: str
    factor: float
    source: str


IDEAS = {
    "cross-layer attention, 2 layers": Idea("layers", 1 / 2, "Brandon et al. 2024"),
    "one attention layer in 8 (Jamba)": Idea("layers", 1 / 8, "Lieber et al. 2024"),
    "one cache for the upper half (YOCO), 60 layers": Idea(
        "layers", 1 / 60, "Sun et al. 2024, windows of the lower half left out"
    ),
    "half the heads keep the context (DuoAttention)": Idea("heads", 1 / 2, "Xiao et al. 2024"),
    "retrieval heads alone, 1 in 20": Idea("heads", 1 / 20, "Wu et al. 2024"),
    "8 KV heads to one (MQA)": Idea("heads", 1 / 8, "Shazeer 2019"),
    "a fifth of the tokens (H2O)": Idea("tokens", 1 / 5, "Zhang et al. 2023"),
    "merged tokens, 4 into 1 (DMC)": Idea("tokens", 1 / 4, "Nawrot et al. 2024"),
    "8 bits": Idea("hidden", 1 / 2, "common practice"),
    "4 bits": Idea("hidden", 1 / 4, "common practice"),
    "2 bits (KIVI)": Idea("hidden", 1 / 8, "Liu et al. 2024, scales left out"),
}
"""From memory; factors are the authors' round ones."""
