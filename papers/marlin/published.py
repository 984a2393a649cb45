"""Shapes and conditions that the paper and the models' own papers give; nothing that is predicted stands here."""

from common.architecture import Transformer

A10_MATRIX = (18432, 73728)
"""(k, n) of the paper's ideal matrix for an A10, 256 x 72 and 4 x 256 x 72 (authors' README, Benchmarks)."""


def _llama(width: int, depth: int, heads: int, hidden: int) -> Transformer:
    return Transformer(
        width=width, depth=depth, heads=heads, kv_heads=heads, head_dim=width // heads, hidden=hidden, context=4096,
        vocabulary=32000, tied=False,
    )  # fmt: skip


LLAMA = {
    "7B": _llama(4096, 32, 32, 11008),
    "13B": _llama(5120, 40, 40, 13824),
    "33B": _llama(6656, 60, 52, 17920),
    "65B": _llama(8192, 80, 64, 22016),
}
"""Touvron et al., LLaMA (arXiv 2302.13971), table 2; hidden widths from the released models. Llama 2 7B and 13B are the same."""

LAYERS = {
    **{
        f"Llama {name}": [(a.width, 3 * a.width), (a.width, a.width), (a.width, 2 * a.hidden), (a.hidden, a.width)]
        for name, a in LLAMA.items()
    },
    "Falcon 180B": [(14848, 14848 + 2 * 8 * 64), (14848, 14848), (14848, 4 * 14848), (4 * 14848, 14848)],
}
"""(k, n) of the linear layers of one block, joined as the authors' benchmark joins them. Falcon: Almazrouei et al., 2023."""
