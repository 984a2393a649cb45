"""Decoding of DFloat11: a Huffman-coded stream of bfloat16 exponents that thousands of threads read at once.

The stream is cut into pieces of 8 bytes, one for each thread, without regard to where codes begin. A *gap* of 5 bits for each
thread says where the first code of its piece begins, and for each block of threads a *position* says how many symbols begin
before it. Both phases walk the codes of a piece: the first only counts, the second writes from where the counts of the
threads before it end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int16, Int32, UInt8

from common.ops import framework, operation, readable

from .layout import TABLES, blocks


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True, tuning=("variant",))
def decode(
    stream: UInt8[Any, " bytes"],
    gaps: UInt8[Any, " gap_bytes"],
    tables: UInt8[Any, "tables 256"],
    positions: Int32[Any, " edges"],
    sign_mantissa: UInt8[Any, " count"],
    *,
    threads: int = 512,
    variant: str | None = None,
    backend: str | None = None,
) -> Int16[Any, " count"]:
    """The bits of ``count`` bfloat16 numbers: w_i = sign_i << 15 | exponent_i << 7 | mantissa_i.

    exponent_i is the i-th code of the stream, sign and mantissa lie in byte i of ``sign_mantissa`` (sign highest).

    Args:
        stream: codes of at most 32 bits one after the other, most significant bit first.
        gaps: for thread t, which owns the bits from 64 t on, the distance to the first code that begins there; 5 bits each,
            most significant first, for all threads of all blocks.
        tables: look-up tables of the next 8 bits, the first for a code's beginning: an entry below 240 is the exponent, another
            entry e says that the next 8 bits are looked up in table 256 - e. The last row is the length of each exponent's code.
        positions: symbols that begin before each block, and ``count`` at the end.
        threads: of a block, a multiple of 8; the format depends on it.
        variant: of backend "torch": "serial" walks each block once, in compiled code on the CPU; "parallel" is the two-phase
            algorithm in whole-array operations. The default is "serial" on a CPU.

    Returns:
        int16; ``.view(torch.bfloat16)`` and ``jax.lax.bitcast_convert_type`` make numbers of it without a copy.

    Raises:
        TypeError, ValueError: dtypes, shapes or positions that cannot belong together (positions are looked at on the CPU and
            outside tracing alone). Bits that are wrong are not noticed here: files carry checksums.

    Source: Zhang et al., DFloat11 (arXiv 2504.11651), section 2.3, algorithm 1.
    """
    wanted = {"stream": "uint8", "gaps": "uint8", "tables": "uint8", "positions": "int32", "sign_mantissa": "uint8"}
    arrays = (stream, gaps, tables, positions, sign_mantissa)
    for (name, dtype), array in zip(wanted.items(), arrays, strict=True):
        if framework(array) is None or str(array.dtype).rpartition(".")[2] != dtype:
            raise TypeError(f"decode: {name} is {getattr(array, 'dtype', type(array).__name__)}; wanted an array of {dtype}")
    if threads < 8 or threads % 8:
        raise ValueError(f"decode: threads is {threads}; wanted a multiple of 8, the one that the stream was encoded for")
    if tables.ndim != 2 or not 2 <= tables.shape[0] <= TABLES + 1 or tables.shape[1] != 256:
        raise ValueError(
            f"decode: tables have the shape {tuple(tables.shape)}; wanted (2 to {TABLES + 1}, 256), the last row lengths"
        )
    grid = blocks(stream.shape[0], threads)
    if positions.shape != (grid + 1,) or gaps.shape != (grid * threads * 5 // 8,):
        raise ValueError(
            f"decode: {stream.shape[0]} bytes are {grid} blocks of {threads} threads, so {grid + 1} positions and "
            f"{grid * threads * 5 // 8} bytes of gaps are wanted, not {positions.shape[0]} and {gaps.shape[0]}; "
            "pass the threads that the stream was encoded for"
        )
    if readable(positions):
        edges = np.asarray(positions)
        if edges[-1] != sign_mantissa.shape[0] or edges[0] or (np.diff(edges) < 0).any():
            raise ValueError(
                f"decode: positions must rise from 0 to the {sign_mantissa.shape[0]} bytes of sign_mantissa; "
                f"they go from {edges[0]} to {edges[-1]}, so these parts belong to different tensors or are damaged"
            )
    return decode.operation(*arrays, threads=threads, variant=variant, backend=backend)
