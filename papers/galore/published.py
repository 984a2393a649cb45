"""Figures and sizes from the paper that something here is built from; nothing that is predicted stands here."""

VOCABULARY = 32_000
"""Of the LLaMA models (paper, appendix C.1)."""

SIZES = {
    "60M": {"width": 512, "hidden": 1376, "heads": 8, "depth": 8, "rank": 128},
    "130M": {"width": 768, "hidden": 2048, "heads": 12, "depth": 12, "rank": 256},
    "350M": {"width": 1024, "hidden": 2736, "heads": 16, "depth": 24, "rank": 256},
    "1B": {"width": 2048, "hidden": 5461, "heads": 32, "depth": 24, "rank": 512},
    "7B": {"width": 4096, "hidden": 11008, "heads": 32, "depth": 32, "rank": 1024},
}
"""Paper, table 5 (sizes) and table 2 (ranks)."""

ACTIVATIONS = 2e9
"""Bytes of activations of the 7B model with 256 tokens in a batch (paper, section 1 and figure 1)."""

CARD = 24
"""GB of the consumer card (paper, abstract)."""

STATE_BLOCK = 2048
"""Elements that share a scale in the 8-bit optimizers of the time (Dettmers et al. 2021, section 2); today it is 256."""
