"""PyTorch: compiled loops on the CPU, whole-array operations on every other device and while tracing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def quantize_blockwise(
    x: Float[Tensor, "*shape"], code: Float32[Tensor, " size"], *, block: int = 64
) -> tuple[UInt8[Tensor, " count"], Float32[Tensor, " blocks"]]:
    flat = x.detach().to(torch.float32).reshape(-1)
    middles = (code[1:] + code[:-1]) / 2
    if _compiled(flat):
        from . import compiled

        found = compiled.quantize(flat.numpy(), middles.numpy(), block, torch.get_num_threads())
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    blocks = -(-flat.numel() // block)
    rows = F.pad(flat, (0, blocks * block - flat.numel())).reshape(blocks, block)
    absmax = rows.abs().amax(dim=1)
    scaled = rows * (1 / absmax.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
    return torch.bucketize(scaled, middles).to(torch.uint8).reshape(-1)[: flat.numel()], absmax


def dequantize_blockwise(
    indices: UInt8[Tensor, " count"],
    absmax: Float32[Tensor, " blocks"],
    code: Float32[Tensor, " size"],
    *,
    block: int = 64,
) -> Float32[Tensor, " count"]:
    if _compiled(indices):
        from . import compiled

        values = compiled.dequantize(indices.numpy(), absmax.numpy(), code.numpy(), block, torch.get_num_threads())
        return torch.from_numpy(values)
    count, blocks = indices.shape[0], absmax.shape[0]
    rows = F.pad(code[indices.long()], (0, blocks * block - count)).reshape(blocks, block)
    return (rows * absmax[:, None]).reshape(-1)[:count]


def _compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
