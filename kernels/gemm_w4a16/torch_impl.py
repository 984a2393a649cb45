"""PyTorch. On the CPU a few rows go through a compiled loop over the words (``compiled``); more rows, other devices, float64
and the gradient make one tile of W after the other, which stays in the cache, and multiply it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float16, Int8, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layout import COLUMNS, GROUPS, LANES, NIBBLES, ROWS, SIZES, WORDS, scale_pattern

TILE = 1 << 20
"""Weights of a tile, at most."""
GRAIN = 1 << 15
"""at::internal::GRAIN_SIZE: numbers that torch handles in one thread."""


def pack(
    codes: Int8[Tensor, "k n"], scales: Float[Tensor, "groups n"], *, group: int = 128
) -> tuple[Int32[Tensor, "tiles words"], Float[Tensor, "groups n"]]:
    nibbles = rearrange(codes.int() + 8, f"{ROWS} {COLUMNS} -> {WORDS} {NIBBLES}", **SIZES)
    packed = nibbles[..., 0].clone()
    for place in range(1, 8):
        packed |= nibbles[..., place] << (4 * place)
    stored, natural, sizes = scale_pattern(len(scales) == 1)
    return packed, rearrange(scales, f"{natural} -> {stored}", **sizes).contiguous()


def unpack(
    packed: Int32[Tensor, "tiles words"], scales: Float[Tensor, "groups n"], *, group: int = 128
) -> tuple[Int8[Tensor, "k n"], Float[Tensor, "groups n"]]:
    nibbles = (packed[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)) & 15
    codes = rearrange(nibbles - 8, f"{WORDS} {NIBBLES} -> {ROWS} {COLUMNS}", **SIZES).to(torch.int8)
    return codes, ordered(scales, COLUMNS)


def dequantize(
    packed: Int32[Tensor, "tiles words"], scales: Float[Tensor, "groups n"], *, group: int = 128
) -> Float[Tensor, "k n"]:
    codes = rearrange(halves(packed), f"{WORDS} (block half) two -> {ROWS} {COLUMNS}", **SIZES)
    return _scaled(codes, ordered(scales, COLUMNS))


def halves(words: Int32[Tensor, "*shape"]) -> Float16[Tensor, "*shape 4 2"]:
    """The eight codes of each word, q in -8..7, as float16: entry (p, t) is nibble p + 4 t.

    Five operations on whole words for eight weights; no table, no shift of a single nibble.
    """
    found = []
    for part in (words, words >> 8):
        low = ((part & 0x000F000F) | 0x64006400).view(torch.float16).unflatten(-1, (-1, 2))
        high = ((part & 0x00F000F0) | 0x64006400).view(torch.float16).unflatten(-1, (-1, 2))
        found += [low - 1032, high * 0.0625 - 72]
    return torch.stack(found, dim=-2)


def matmul(
    x: Float[Tensor, "*batch k"],
    packed: Int32[Tensor, "tiles words"],
    scales: Float[Tensor, "groups n"],
    *,
    group: int = 128,
) -> Float[Tensor, "*batch n"]:
    return _Product.apply(x, packed, scales)


class _Product(torch.autograd.Function):
    """Keeps the words and the scales; the backward makes the tiles again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scales)
        return forward(x.reshape(-1, x.shape[-1]), packed, scales).reshape(*x.shape[:-1], packed.shape[1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return backward(dy, *ctx.saved_tensors), None, None


def forward(x: Float[Tensor, "m k"], packed: Tensor, scales: Tensor) -> Float[Tensor, "m n"]:
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu" and wide == torch.float32 and len(x) and not torch.compiler.is_compiling():
        from . import compiled

        threads = torch.get_num_threads()
        return torch.from_numpy(compiled.product(single(x), packed.numpy(), single(ordered(scales, GROUPS)), threads)).to(x.dtype)
    y = x.new_zeros(len(x), packed.shape[1] // 2, dtype=wide)
    for rows, w in _tiles(packed, scales, wide):
        y.addmm_(x[:, rows].to(wide), w)
    return rearrange(y, f"m {LANES} -> m {COLUMNS}", **_only(LANES)).to(x.dtype)


def single(x: Float[Tensor, "rows columns"]) -> np.ndarray:
    """float32 for a compiled loop, a part at a time: for more than GRAIN numbers torch wakes its own threads, and these go on
    spinning on the cores that the loop's threads need."""
    x = x.detach()
    if x.dtype == torch.float32:
        return x.numpy()
    wide, rows = torch.empty(x.shape), max(1, GRAIN // max(1, x.shape[1]))
    for source, target in zip(x.split(rows), wide.split(rows), strict=True):
        target.copy_(source)
    return wide.numpy()


def backward(dy: Float[Tensor, "*batch n"], packed: Tensor, scales: Tensor) -> Float[Tensor, "*batch k"]:
    """dy W^T; shared with the Triton backend."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    flat = rearrange(dy.reshape(-1, dy.shape[-1]), f"m {COLUMNS} -> m {LANES}", **_only(LANES)).to(wide)
    dx = torch.cat([flat @ w.T for _, w in _tiles(packed, scales, wide)], dim=1)
    return dx.to(dy.dtype).reshape(*dy.shape[:-1], dx.shape[1])


def _tiles(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of W in turn, whole groups, their columns in the order of the lanes, in a buffer that is used again."""
    tiles, n = packed.shape[0], packed.shape[1] // 2
    each = max(1, TILE // (128 * n)) * 8
    fast = packed.device.type == "cpu" and dtype == torch.float32 and not torch.compiler.is_compiling()
    scales = ordered(scales.to(dtype), GROUPS if fast else LANES)
    buffer = packed.new_empty(16 * min(each, tiles) if fast else 0, n, dtype=dtype)
    for first in range(0, tiles, each):
        last = min(first + each, tiles)
        words = packed[first:last]
        scale = scales if len(scales) == 1 else scales[first // 8 : last // 8]
        if fast:
            from . import compiled

            w = buffer[: 16 * len(words)]
            compiled.dequantize(words.numpy(), scale.numpy(), w.numpy(), torch.get_num_threads())
        else:
            codes = rearrange(halves(words), f"{WORDS} (block half) two -> {ROWS} {LANES}", **SIZES)
            w = _scaled(codes, scale)
        yield slice(16 * first, 16 * last), w


def _scaled(codes: Tensor, scales: Tensor) -> Tensor:
    grouped = rearrange(codes.to(scales.dtype), "(g row) n -> g row n", g=len(scales))
    return rearrange(grouped * scales[:, None], "g row n -> (g row) n")


def ordered(scales: Float[Tensor, "groups n"], to: str) -> Float[Tensor, "groups n"]:
    """Stored scales in another order of :mod:`.layout`."""
    stored, wanted, sizes = scale_pattern(len(scales) == 1, to)
    return scales if stored == f"g {to}" else rearrange(scales, f"{stored} -> {wanted}", **sizes).contiguous()


def _only(pattern: str) -> dict[str, int]:
    return {name: size for name, size in SIZES.items() if name in pattern.strip("()").split()}
