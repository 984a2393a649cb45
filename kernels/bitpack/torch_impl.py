"""PyTorch: a group of values becomes a group of bytes by a few shifts of whole columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from .layout import group, terms


def pack(values: UInt8[Tensor, "*rows count"], *, bits: int, high_first: bool = True) -> UInt8[Tensor, "*rows bytes"]:
    size, width = group(bits)
    used = -(-values.shape[-1] * bits // 8)
    groups = grouped(values, size)
    out = values.new_zeros(*groups.shape[:-1], width)
    for byte, value, shift in terms(bits, high_first):
        out[..., byte] |= _shifted(groups[..., value], shift)
    return out.flatten(-2)[..., :used]


def unpack(
    packed: UInt8[Tensor, "*rows bytes"], *, bits: int, count: int, high_first: bool = True
) -> UInt8[Tensor, "*rows count"]:
    size, width = group(bits)
    groups = grouped(packed, width)
    out = packed.new_zeros(*groups.shape[:-1], size)
    for byte, value, shift in terms(bits, high_first):
        out[..., value] |= _shifted(groups[..., byte], -shift)
    return (out & (2**bits - 1)).flatten(-2)[..., :count]


def grouped(x: Tensor, size: int) -> Tensor:
    """(*rows, n) as (*rows, groups, size), the last group filled with zeros. Shared with the Triton backend."""
    groups = -(-x.shape[-1] // size)
    return F.pad(x, (0, groups * size - x.shape[-1])).reshape(*x.shape[:-1], groups, size)


def _shifted(x: Tensor, shift: int) -> Tensor:
    return torch.bitwise_left_shift(x, shift) if shift >= 0 else torch.bitwise_right_shift(x, -shift)
