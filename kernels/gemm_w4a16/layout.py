"""Marlin's order as patterns: which digit of a weight's row and column, and of its place in a word, stands where.

Row k = 16 tile + 8 half + 2 pair + two and column n = 64 strip + 16 j + 8 block + c. A word is named by (tile; strip, c, pair,
j), and its nibble by (two, block, half), high digit first. A thread of a warp is (c, pair): its four words, j, are 16 bytes in
a row, one fragment of m16n8k16 in each of four neighbouring tiles of 16 x 16.
"""

from __future__ import annotations

SIZES = {"half": 2, "pair": 4, "two": 2, "j": 4, "block": 2, "c": 8}

ROWS = "(tile half pair two)"
COLUMNS = "(strip j block c)"
WORDS = "tile (strip c pair j)"
NIBBLES = "(two block half)"
LANES = "(strip block c j)"
"""Columns in the order in which the words of a tile hold them, once those of one ``pair`` are brought together: what the CPU's
product makes."""

SCALE_SIZES = {"j": 4, "block": 2, "c": 8}
GROUPS = "(strip c j block)"
"""Stored columns of the scales of groups: runs of 64, [i + 8 j for i in 0..7 for j in 0..7]."""

SINGLE_SIZES = {"far": 2, "near": 2, "block": 2, "i": 4, "two": 2}
SINGLE = "g (strip far i near block two)"
"""Stored columns of one scale a column: runs of 32, as accumulators of m16n8k16 lie; j is (far near) and c is (i two)."""
_SINGLE_TO = {
    COLUMNS: "g (strip far near block i two)",
    LANES: "g (strip block i two far near)",
    GROUPS: "g (strip i two far near block)",
}


def scale_pattern(single: bool, to: str = COLUMNS) -> tuple[str, str, dict[str, int]]:
    """(stored order, wanted order, sizes) for einops. ``to`` is COLUMNS, as they are numbered, LANES, or GROUPS."""
    if single:
        return SINGLE, _SINGLE_TO[to], SINGLE_SIZES
    return f"g {GROUPS}", f"g {to}", SCALE_SIZES
