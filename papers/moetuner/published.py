"""Constants that the time model needs, with their sources. None of them was fitted to a result."""

from __future__ import annotations

from common.architecture import Transformer

MIXTRAL = Transformer(
    vocabulary=32_000, width=4096, depth=32, heads=32, kv_heads=8, head_dim=128, hidden=14_336, context=32_768, experts=8, active=2,
    tied=False,
)  # fmt: skip
"""Mixtral-8x7B (Jiang et al. 2024, arXiv 2401.04088, table 1)."""

BYTES = 2
"""Of a number, bfloat16."""

GPU = "h100_sxm"
"""Which GPUs the paper used is recalled as of this class; the H200 has the same arithmetic and NVLink, and more memory."""

LINK = "infiniband_ndr"
"""Between nodes, one for each GPU; assumed."""

EFFICIENCY = 0.5
"""Share of the peak that products of matrices reach; assumed."""
