"""Why column c of row r of a tile of activations lies at c XOR r in shared memory: banks that two threads want at once.

Shared memory gives 32 banks of 4 bytes in one pass; eight threads that move 16 bytes each fill them. Rows of a tile that is a
multiple of 128 bytes wide all begin in the same bank, so eight rows of one column would take eight passes.

Source: MARLIN, section 3.4, "Shared memory layout".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def place(row: Int[np.ndarray, "*shape"], column: Int[np.ndarray, "*shape"], width: int, xor: bool) -> Int[np.ndarray, "*shape"]:
    """Where a block of 16 bytes lies, in blocks; ``width`` blocks make a row, a power of two from 8 on."""
    return row * width + (column ^ (row & 7) if xor else column)


def passes(width: int, *, xor: bool) -> dict[str, int]:
    """Passes beyond the first that the worst eight threads need: writing along a row, and reading eight rows of one column, as
    ``ldmatrix`` does."""
    rows, columns = np.mgrid[:16, :width]
    whole = place(rows, columns, width, xor) % 8
    writing = whole.reshape(-1, 8)
    reading = whole.reshape(2, 8, width).transpose(0, 2, 1).reshape(-1, 8)

    def worst(groups: np.ndarray) -> int:
        return int((groups[..., None] == np.arange(8)).sum(1).max()) - 1

    return {"write": worst(writing), "read": worst(reading)}
