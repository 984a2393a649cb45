"""PyTorch: compiled loops over blocks on the CPU, and the two-phase algorithm in whole-array operations on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Int16, Int32, UInt8
from torch import Tensor

from .layout import BITS, BYTES, LONGEST, POINTER


def decode(
    stream: UInt8[Tensor, " bytes"],
    gaps: UInt8[Tensor, " gap_bytes"],
    tables: UInt8[Tensor, "tables 256"],
    positions: Int32[Tensor, " edges"],
    sign_mantissa: UInt8[Tensor, " count"],
    *,
    threads: int = 512,
    variant: str | None = None,
) -> Int16[Tensor, " count"]:
    cpu = stream.device.type == "cpu"
    variant = variant or ("serial" if cpu else "parallel")
    if variant not in ("serial", "parallel") or (variant == "serial" and not cpu):
        raise ValueError(f"decode: variant {variant!r} on {stream.device.type}; there are 'parallel', and 'serial' on a CPU")
    if not sign_mantissa.numel():
        return torch.empty(0, dtype=torch.int16, device=stream.device)
    if variant == "serial":
        from . import compiled

        arrays = (x.contiguous().numpy() for x in (stream, gaps, tables, positions, sign_mantissa))
        return torch.from_numpy(compiled.decode(*arrays, threads, torch.get_num_threads()))
    return _parallel(stream, gaps, tables, positions, sign_mantissa, threads)


def _parallel(stream: Tensor, gaps: Tensor, tables: Tensor, positions: Tensor, sign_mantissa: Tensor, threads: int) -> Tensor:
    """All threads walk in step; those that have left their piece wait."""
    grid, count = positions.numel() - 1, sign_mantissa.numel()
    # The threads of the last block that own nothing, and what a thread sees ahead of its piece, are zeros.
    data = F.pad(stream, (0, grid * threads * BYTES + 2 * BYTES - stream.numel())).long()
    first = torch.arange(grid * threads, device=stream.device) * BYTES
    gap = _gaps(gaps)
    lookup = tables.long()

    bit, counts = gap.clone(), torch.zeros_like(gap)
    while (inside := bit < BITS).any():
        _, length = _look(data, first, bit, lookup)
        bit += torch.where(inside, length, 0)
        counts += inside

    per_block = rearrange(counts, "(block thread) -> block thread", thread=threads)
    before = per_block.cumsum(1) - per_block + positions[:-1, None]
    place, bit = before.flatten(), gap.clone()
    # What padding decodes to falls behind the last number.
    exponent = torch.zeros(count + 1, dtype=torch.long, device=stream.device)
    while (inside := bit < BITS).any():
        symbol, length = _look(data, first, bit, lookup)
        exponent[torch.where(inside, place, count).clamp(max=count)] = symbol
        bit += torch.where(inside, length, 0)
        place += inside
    rest = sign_mantissa.to(torch.int32)
    # int32 keeps the sixteen bits; the cast to int16 keeps the lower half.
    return ((rest & 0x80) << 8 | exponent[:count].to(torch.int32) << 7 | rest & 0x7F).to(torch.int16)


def _gaps(gaps: Tensor) -> Tensor:
    """Eight gaps fill five bytes."""
    byte = rearrange(gaps.long(), "(group byte) -> group byte", byte=5)
    word = (byte << torch.tensor([32, 24, 16, 8, 0], device=gaps.device)).sum(1)
    return (word[:, None] >> torch.arange(35, -1, -5, device=gaps.device) & 31).flatten()


def _look(data: Tensor, first: Tensor, bit: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """(exponent, length) of the code at a bit of each thread's piece."""
    byte = first + (bit >> 3)
    five = torch.stack([data[byte + ahead] << 8 * (4 - ahead) for ahead in range(5)]).sum(0)
    window = five >> (8 - (bit & 7))
    entry = tables[0, window >> 24 & 255]
    for level in range(1, min(4, len(tables) - 1)):
        table = (256 - entry).clamp(max=len(tables) - 2)
        entry = torch.where(entry >= POINTER, tables[table, window >> 24 - 8 * level & 255], entry)
    return entry, tables[-1, entry].clamp(1, LONGEST)
