"""Where the bits of a group of values lie: all fast backends unroll this list."""

from __future__ import annotations

import math
from typing import NamedTuple


class Term(NamedTuple):
    """Part of byte ``byte`` of a group is value ``value`` of that group, shifted left by ``shift`` (right if negative)."""

    byte: int
    value: int
    shift: int


def group(bits: int) -> tuple[int, int]:
    """The smallest number of values that fills whole bytes, and how many bytes."""
    common = math.gcd(8, bits)
    return 8 // common, bits // common


def terms(bits: int, high_first: bool) -> list[Term]:
    """Every overlap of a byte with a value, at most bits + 7 of them."""
    values, width = group(bits)
    found = []
    for byte in range(width):
        for value in range(values):
            shift = 8 * (byte + 1) - bits * (value + 1) if high_first else bits * value - 8 * byte
            if -bits < shift < 8:
                found.append(Term(byte, value, shift))
    return found
