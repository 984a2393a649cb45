"""What a thread and a block of the format own."""

from __future__ import annotations

BYTES = 8
"""Bytes of the stream that a thread owns."""
BITS = 8 * BYTES
LONGEST = 32
"""Bits of the longest code; a thread looks so far ahead."""
POINTER = 240
"""A table's entry from here on names another table; smaller ones are exponents."""
TABLES = 256 - POINTER
"""Most tables that can be named, the first included: an entry e names table 256 - e, up to 16."""


def blocks(size: int, threads: int) -> int:
    """Blocks that a stream of so many bytes is cut into."""
    return -(-size // (BYTES * threads))
