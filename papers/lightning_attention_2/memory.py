"""Bytes that one attention layer holds on the GPU, counted on the meta device from the buffers that are really made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.allocations import Allocations
from kernels.linear_attention import lightning_attention

MIB = 2**20
CUDA_GRANULARITY = 512
"""PyTorch's CUDA allocator rounds every block up to this many bytes."""


def forward_and_backward(
    kind: str, n: int, batch: int = 4, heads: int = 32, dim: int = 128, repetitions: int = 20
) -> tuple[float, float]:
    """(forward, backward) memory in MiB in bfloat16, as the authors' benchmark takes it.

    Forward is the high-water mark of one call. Backward is the mean over repetitions of ``o.backward(do)`` of the mark so
    far; in all but the first, gradients of the repetition before are there and are added to.

    Args:
        kind: "LA2" or "FA2".
    """
    q, k, v = (torch.empty(batch, heads, n, dim, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
    slope = torch.empty(heads, device="meta")
    with Allocations(q, k, v, slope, granularity=CUDA_GRANULARITY) as forward:
        o = _attention(kind, q, k, v, slope)
    held = forward.peak
    marks = []
    with Allocations(q, k, v, slope, granularity=CUDA_GRANULARITY) as counted:
        o = _attention(kind, q, k, v, slope)
        do = torch.empty_like(o)
        for _ in range(repetitions):
            o.backward(do, retain_graph=True)
            marks.append(counted.peak)
    return held / MIB, sum(marks) / len(marks) / MIB


def linear_growth(n: int, heads: int = 4, dim: int = 64, **options: Any) -> float:
    """Peak of forward and backward on the CPU at 2 n tokens over that at n, in real buffers.

    ``options`` go to the attention: its variant, or another backend than PyTorch's.
    """
    peaks = []
    for length in (n, 2 * n):
        q, k, v = (torch.zeros(1, heads, length, dim, requires_grad=True) for _ in range(3))
        with Allocations(q, k, v) as counted:
            lightning_attention(q, k, v, torch.full((heads,), 0.1), **options).sum().backward()
        peaks.append(counted.peak)
    return peaks[1] / peaks[0]


def _attention(kind: str, q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    if kind == "LA2":
        return lightning_attention(q, k, v, slope, backend="triton")
    return _FlashAttention2.apply(q, k, v)


class _FlashAttention2(torch.autograd.Function):
    """The buffers of FlashAttention-2 (Dao 2023, algorithms 1 and 2; flash-attn 2's interface), without its arithmetic.

    Forward: the output, the float32 logsumexp of every row and the state of the dropout generator. Backward: the row sums
    of dO * O, a float32 accumulator of dQ, and the three gradients.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logsumexp = q.new_empty(q.shape[:3], dtype=torch.float32)
        generator = q.new_empty(2, dtype=torch.int64)
        o = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, o, logsumexp, generator)
        return o

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        row_sum = q.new_empty(q.shape[:3], dtype=torch.float32)
        accumulator = torch.empty_like(q, dtype=torch.float32)
        gradients = tuple(torch.empty_like(x) for x in (q, k, v))
        del row_sum, accumulator
        return gradients
