"""PyTorch: one compiled pass on the CPU, whole-array operations on every other device and while tracing."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from .tables import STEPS, ZERO, tables

Moments = tuple[
    Float32[Tensor, " count"],
    UInt8[Tensor, " count"],
    Float32[Tensor, " blocks"],
    UInt8[Tensor, " count"],
    Float32[Tensor, " blocks"],
]


def adam8bit(
    gradient: Float[Tensor, " count"],
    mean: UInt8[Tensor, " count"],
    mean_scale: Float32[Tensor, " blocks"],
    square: UInt8[Tensor, " count"],
    square_scale: Float32[Tensor, " blocks"],
    *,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    block: int = 256,
    grid: bool = False,
) -> Moments:
    correct1, correct2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    arrays = gradient.detach().float(), mean, mean_scale, square, square_scale
    if gradient.device.type == "cpu" and not torch.compiler.is_compiling():
        from . import compiled

        numbers = np.array([beta1, 1 - beta1, beta2, 1 - beta2, epsilon, correct1, correct2], np.float32)
        done = compiled.adam8bit([each.numpy() for each in arrays], numbers, block, grid, torch.get_num_threads())
        return tuple(map(torch.from_numpy, done))  # type: ignore[return-value]
    signed, unsigned, m_edges, v_edges = (torch.tensor(each, device=gradient.device) for each in tables())
    g, mean, square = _blocks(arrays[0], block), _blocks(mean, block, ZERO), _blocks(square, block)
    m = (signed[mean.long()] * mean_scale[:, None]).mul_(beta1).add_(g, alpha=1 - beta1)
    v = (unsigned[square.long()] * square_scale[:, None]).mul_(beta2).addcmul_(g, g, value=1 - beta2)
    direction = m / correct1 / (v.sqrt() / correct2 + epsilon)
    count = gradient.numel()
    m_codes, m_scale = _encode(m, m_edges, grid)
    v_codes, v_scale = _encode(v, v_edges, grid)
    flat = [each.reshape(-1)[:count] for each in (direction, m_codes, v_codes)]
    return flat[0], flat[1], m_scale, flat[2], v_scale


def _blocks(x: Tensor, block: int, fill: int = 0) -> Tensor:
    """One row for each block; a ragged last one is filled up with what decodes to zero and so changes no maximum."""
    return rearrange(F.pad(x, (0, -x.numel() % block), value=fill), "(block each) -> block each", each=block)


def _encode(x: Tensor, edges: Tensor, grid: bool) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(1)
    quotient = x * (1 / scale.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
    if grid:
        quotient = torch.floor((quotient + 1) * 0.5 * STEPS + 0.5) * (2 / STEPS) - 1
    codes = torch.bucketize(quotient, edges)
    return (torch.where(scale[:, None] > 0, codes, 0) if grid else codes).to(torch.uint8), scale
