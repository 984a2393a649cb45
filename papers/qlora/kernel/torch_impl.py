"""PyTorch: a tile of rows of W that fits the cache is dequantised, multiplied and overwritten by the next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 18
"""Weights of a tile, at most: 1 MiB in float32."""


def matmul_nf4(
    x: Float[Tensor, "*batch k"],
    packed: UInt8[Tensor, "n half"],
    absmax: Float[Tensor, " blocks"],
    code: Float[Tensor, " 16"],
    *,
    block: int = 64,
) -> Float[Tensor, "*batch n"]:
    return _Product.apply(x, packed, absmax, code, block)


def dequantize_nf4(
    packed: UInt8[Tensor, "n half"], absmax: Float32[Tensor, " blocks"], code: Float32[Tensor, " 16"], *, block: int = 64
) -> Float32[Tensor, "n k"]:
    out = packed.new_empty(packed.shape[0], 2 * packed.shape[1], dtype=torch.float32)
    _dequantize(packed.reshape(-1), absmax, code, block, out.view(-1))
    return out


class _Product(torch.autograd.Function):
    """Keeps the bytes and the scales; the backward makes the tiles again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, absmax: Tensor, code: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(packed, absmax, code)
        ctx.block = block
        flat = x.reshape(-1, x.shape[-1])
        y = x.new_empty(flat.shape[0], packed.shape[0])
        for rows, w in _tiles(packed, absmax, code, block, x.dtype):
            y[:, rows] = flat @ w.T
        return y.reshape(*x.shape[:-1], packed.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        packed, absmax, code = ctx.saved_tensors
        flat = dy.reshape(-1, dy.shape[-1])
        wide = torch.promote_types(dy.dtype, torch.float32)
        dx = flat.new_zeros(flat.shape[0], 2 * packed.shape[1], dtype=wide)
        for rows, w in _tiles(packed, absmax, code, ctx.block, dy.dtype):
            dx += flat[:, rows] @ w
        return dx.to(dy.dtype).reshape(*dy.shape[:-1], dx.shape[1]), None, None, None, None


def _tiles(packed: Tensor, absmax: Tensor, code: Tensor, block: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of W in turn, in a buffer that is used again; every tile but the last is whole blocks."""
    n, half = packed.shape
    least = block // math.gcd(block, 2 * half) if half else 1
    rows = max(1, TILE // max(1, 2 * half * least)) * least
    flat, kind = packed.reshape(-1), torch.promote_types(torch.float32, absmax.dtype)
    buffer = packed.new_empty(min(rows, n) * 2 * half, dtype=kind)
    for first in range(0, n, rows):
        last = min(first + rows, n)
        w = buffer[: (last - first) * 2 * half]
        blocks = slice(first * 2 * half // block, -(-last * 2 * half // block))
        _dequantize(flat[first * half : last * half], absmax[blocks], code, block, w)
        yield slice(first, last), w.view(last - first, 2 * half).to(dtype)


def _dequantize(packed: Tensor, absmax: Tensor, code: Tensor, block: int, out: Tensor) -> None:
    """Into ``out``, flat; compiled on the CPU."""
    if out.device.type == "cpu" and out.dtype == torch.float32 and not torch.compiler.is_compiling():
        from . import compiled

        compiled.dequantize(packed.numpy(), absmax.numpy(), code.numpy(), block, out.numpy(), torch.get_num_threads())
        return
    values = code[rearrange(torch.stack([packed >> 4, packed & 15], -1), "half two -> (half two)").long()]
    rows = F.pad(values, (0, absmax.numel() * block - values.numel())).reshape(-1, block)
    out.copy_((rows * absmax[:, None]).reshape(-1)[: out.numel()])
