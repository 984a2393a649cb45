"""PyTorch: one copy of a strided view, whose items are the widest words that everything is a multiple of."""

from __future__ import annotations

import math

import torch
from jaxtyping import UInt8
from torch import Tensor

WORDS = {16: torch.complex128, 8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def strided_pack(
    source: UInt8[Tensor, " bytes"], *, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> UInt8[Tensor, " packed"]:
    packed = torch.empty(math.prod(counts), dtype=torch.uint8, device=source.device)
    if packed.numel():
        ours, block, backwards = _views(packed, source, start, counts, strides)
        ours.copy_(block.flip(backwards) if backwards else block)
    return packed


def strided_unpack(
    packed: UInt8[Tensor, " packed"],
    target: UInt8[Tensor, " bytes"],
    *,
    start: int,
    counts: tuple[int, ...],
    strides: tuple[int, ...],
    out: Tensor | None = None,
) -> UInt8[Tensor, " bytes"]:
    result = target.clone() if out is None else out
    if packed.numel():
        ours, block, backwards = _views(packed, result, start, counts, strides)
        block.copy_(ours.flip(backwards) if backwards else ours)
    return result


def word(*numbers: int) -> int:
    """The widest word, up to 16 bytes, that all numbers are multiples of."""
    return math.gcd(16, *numbers)


def _views(
    packed: Tensor, memory: Tensor, start: int, counts: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[Tensor, Tensor, list[int]]:
    """Packed bytes and strided block as tensors of one shape, the outermost loop first, and the axes walked backwards.

    A tensor has no negative strides, so such a loop is walked from its other end.
    """
    first = start + sum((count - 1) * stride for count, stride in zip(counts, strides, strict=True) if stride < 0)
    width = word(first, counts[0], *strides[1:], memory.data_ptr(), packed.data_ptr())
    shape = (*counts[:0:-1], counts[0] // width)
    steps = (*(abs(stride) // width for stride in strides[:0:-1]), 1)
    whole = memory[: memory.numel() // width * width].view(WORDS[width])
    block = torch.as_strided(whole, shape, steps, whole.storage_offset() + first // width)
    return packed.view(WORDS[width]).view(shape), block, [i for i, stride in enumerate(strides[:0:-1]) if stride < 0]
