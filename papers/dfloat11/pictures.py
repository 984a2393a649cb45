"""The figures: where the bytes are, which exponents occur, how long a context fits, and the packages side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.figures import style
from papers.dfloat11 import published
from papers.dfloat11.codec import Unit

_NAMES = {
    "sign_mantissa": "sign and mantissa",
    "stream": "codes",
    "gaps": "gaps",
    "positions": "positions of blocks",
    "tables": "tables",
}


def parts(unit: Unit, count: int) -> Any:
    """Bits of a weight by array, beside the sixteen of bfloat16."""
    with style() as plt:
        figure, axes = plt.subplots(figsize=(7.2, 2.2))
        left = 0.0
        for name, label in _NAMES.items():
            bits = unit.arrays[name].nbytes * 8 / count
            axes.barh(["DFloat11"], bits, left=left, label=f"{label} {bits:.3f}")
            left += bits
        axes.barh(["bfloat16"], 16, color="#bbbbbb")
        axes.set(xlabel="bits of a weight", title=f"{left:.2f} bits a weight")
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.35))
        return figure


def exponents(counts: np.ndarray) -> Any:
    """How often each exponent occurs."""
    with style() as plt:
        figure, axes = plt.subplots()
        used = np.flatnonzero(counts)
        axes.bar(used, counts[used] / counts.sum())
        axes.set(yscale="log", xlabel="exponent (127 stands for 1)", ylabel="share", title=f"{used.size} of 256 exponents occur")
        return figure


def context(overheads: np.ndarray, gains: np.ndarray) -> Any:
    """The gain in context over what else takes memory."""
    with style() as plt:
        figure, axes = plt.subplots()
        axes.plot(overheads / published.GB, gains)
        axes.set(
            yscale="log", xlabel="other memory [GB]", ylabel="times the context",
            title="Llama 3.1 8B on a card of 24 GB",
        )  # fmt: skip
        return figure


def peers(rows: list[dict[str, Any]]) -> Any:
    """Speed over ratio."""
    with style() as plt:
        figure, axes = plt.subplots()
        for row in rows:
            (line,) = axes.plot(row["ratio"], row["decode_mb_s"], "o", label=row["what"])
            axes.plot(row["ratio"], row["encode_mb_s"], "s", color=line.get_color(), fillstyle="none")
        axes.set(yscale="log", xlabel="size over bfloat16", ylabel="MB/s; filled: decode, open: encode", title="The same bytes")
        axes.legend()
        return figure
