"""Sparse-MARLIN's order as patterns, beside that of :mod:`kernels.gemm_w4a16.layout`.

Row k = 32 tile + 16 half + 4 pair + place and column n = 64 strip + 8 c + 4 block + j. Of the four places of a group two are kept,
``two`` = 0 and 1: they are neighbouring rows of the (k / 2, n) values, and neighbours in a word. The weights are the left side of
mma.sp here, so a thread's words lie beside each other in j, not in four tiles. A group's places are four bits, ``pair`` counts them
in a word of 16; the word of half a tile goes where the authors' form of CUTLASS's InterleavedColumnMajor layout for m16n8k32 has it.
"""

from __future__ import annotations

SIZES = {"half": 2, "pair": 4, "two": 2, "c": 8, "block": 2, "j": 4}

ROWS = "(tile half pair place)"
KEPT = "(tile half pair two)"
COLUMNS = "(strip c block j)"
WORDS = "tile (strip c pair j)"
NIBBLES = "(two block half)"
LANES = "(strip block c j)"
"""Columns as the CPU's product makes them."""

META_SIZES = {"half": 2, "c": 8, "block": 2, "high": 2, "low": 2}
META_COLUMNS = "(strip c block high low)"
META = "tile (strip high c low half block)"
"""Words of 16 bits, one for each column and half a tile; j is (high low)."""

GROUPS = "(strip c j block)"
"""Stored columns of the scales of groups: runs of 64, [8 i + j for i in 0..7 for j in (0, 4, 1, 5, 2, 6, 3, 7)]; with one scale a
column they stay in order."""


def scale_pattern(single: bool) -> str:
    return COLUMNS if single else GROUPS
