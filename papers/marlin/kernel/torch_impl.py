"""PyTorch. On the CPU a compiled loop over words and places; elsewhere, in float64 and for the gradient, tiles of W in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int8, Int16, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import sparse24
from kernels.gemm_w4a16.torch_impl import single

from .layout import COLUMNS, GROUPS, KEPT, LANES, META, META_COLUMNS, META_SIZES, NIBBLES, ROWS, SIZES, WORDS, scale_pattern

TILE = 1 << 20
"""Weights of a tile, at most."""


def sparse_pack(
    codes: Int8[Tensor, "k n"], scales: Float[Tensor, "groups n"], mask: Bool[Tensor, "k n"], *, group: int = 128
) -> tuple[Int32[Tensor, "tiles words"], Int16[Tensor, "tiles words"], Float[Tensor, "groups n"]]:
    kept, found = sparse24.pack(codes.T.contiguous(), mask.T.contiguous())
    nibbles = rearrange(kept.T.int() + 8, f"{KEPT} {COLUMNS} -> {WORDS} {NIBBLES}", **SIZES)
    values = nibbles[..., 0].clone()
    for place in range(1, 8):
        values |= nibbles[..., place] << (4 * place)
    meta = rearrange(found.view(torch.int16), f"{META_COLUMNS} (tile half) -> {META}", **META_SIZES).contiguous()
    return values, meta, _moved(scales, COLUMNS, scale_pattern(len(scales) == 1))


def sparse_unpack(
    values: Int32[Tensor, "tiles words"],
    meta: Int16[Tensor, "tiles words"],
    scales: Float[Tensor, "groups n"],
    *,
    group: int = 128,
) -> tuple[Int8[Tensor, "k n"], Float[Tensor, "groups n"], Bool[Tensor, "k n"]]:
    codes, mask = _decoded(values, meta, COLUMNS)
    return codes.to(torch.int8), _moved(scales, scale_pattern(len(scales) == 1), COLUMNS), mask


def sparse_matmul(
    x: Float[Tensor, "*batch k"],
    values: Int32[Tensor, "tiles words"],
    meta: Int16[Tensor, "tiles words"],
    scales: Float[Tensor, "groups n"],
    *,
    group: int = 128,
) -> Float[Tensor, "*batch n"]:
    return _Product.apply(x, values, meta, scales)


class _Product(torch.autograd.Function):
    """Keeps what is stored; the backward makes the tiles again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, meta: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(values, meta, scales)
        return forward(x.reshape(-1, x.shape[-1]), values, meta, scales).reshape(*x.shape[:-1], values.shape[1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        return backward(dy, *ctx.saved_tensors), None, None, None


def forward(x: Float[Tensor, "m k"], values: Tensor, meta: Tensor, scales: Tensor) -> Float[Tensor, "m n"]:
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu" and wide == torch.float32 and len(x) and not torch.compiler.is_compiling():
        from . import compiled

        factors = single(_moved(scales, scale_pattern(len(scales) == 1), GROUPS))
        y = torch.from_numpy(compiled.product(single(x), values.numpy(), meta.numpy(), factors, torch.get_num_threads()))
        return rearrange(y, f"m {LANES} -> m {COLUMNS}", c=8, block=2, j=4).to(x.dtype)
    y = x.new_zeros(len(x), values.shape[1] // 2, dtype=wide)
    for rows, w in _tiles(values, meta, scales, wide):
        y.addmm_(x[:, rows].to(wide), w)
    return y.to(x.dtype)


def backward(dy: Float[Tensor, "*batch n"], values: Tensor, meta: Tensor, scales: Tensor) -> Float[Tensor, "*batch k"]:
    """dy W^T; shared with the Triton backend."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    flat = dy.reshape(-1, dy.shape[-1]).to(wide)
    dx = torch.cat([flat @ w.T for _, w in _tiles(values, meta, scales, wide)], dim=1)
    return dx.to(dy.dtype).reshape(*dy.shape[:-1], dx.shape[1])


def _tiles(values: Tensor, meta: Tensor, scales: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of W in turn, whole groups."""
    tiles, n = values.shape[0], values.shape[1] // 2
    natural = _moved(scales.to(dtype), scale_pattern(len(scales) == 1), COLUMNS)
    each = max(1, TILE // (128 * n)) * 4
    for first in range(0, tiles, each):
        last = min(first + each, tiles)
        codes, _ = _decoded(values[first:last], meta[first:last], COLUMNS)
        scale = natural if len(natural) == 1 else natural[first // 4 : last // 4]
        grouped = rearrange(codes.to(dtype), "(g row) n -> g row n", g=len(scale))
        yield slice(32 * first, 32 * last), rearrange(grouped * scale[:, None], "g row n -> (g row) n")


def _decoded(values: Tensor, meta: Tensor, columns: str) -> tuple[Tensor, Tensor]:
    """Codes (k, n), int32, zero where nothing was kept, and the mask."""
    nibbles = (values[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32, device=values.device)) & 15
    kept = rearrange(nibbles - 8, f"{WORDS} {NIBBLES} -> tile half pair two {columns}", **SIZES)
    words = rearrange(meta, f"{META} -> tile half {META_COLUMNS}", **META_SIZES).int()
    bits = torch.arange(0, 16, 2, dtype=torch.int32, device=values.device)
    where = rearrange((words[..., None] >> bits) & 3, "tile half n (pair two) -> tile half pair two n", two=2)
    hits = where[:, :, :, :, None] == torch.arange(4, dtype=torch.int32, device=values.device)[:, None]
    codes = (hits * kept[:, :, :, :, None]).sum(3, dtype=torch.int32)
    turn = f"tile half pair place n -> {ROWS} n"
    return rearrange(codes, turn), rearrange(hits.any(3), turn)


def _moved(scales: Tensor, source: str, target: str) -> Tensor:
    return scales if source == target else rearrange(scales, f"g {source} -> g {target}", c=8, block=2, j=4).contiguous()
