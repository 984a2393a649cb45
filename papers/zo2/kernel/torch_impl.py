"""Noise in PyTorch, chunk by chunk: the noise of a whole parameter never exists. On a CPU in compiled loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch import Tensor

CHUNK = 2**14
"""Elements that are worked on at once; a multiple of 4. Their temporaries stay in the second-level cache."""

_WORD, _MULTIPLIERS, _WEYL = 0xFFFFFFFF, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(counter: UInt32[Tensor, "n 4"], key: UInt32[Tensor, " 2"]) -> UInt32[Tensor, "n 4"]:
    low, high = (int(each) for each in key.tolist())
    return torch.stack(_rounds(*counter.to(torch.int64).unbind(1), low, high), 1).to(torch.uint32)


def gaussian(like: Float[Tensor, "*shape"], *, seed: Any, parameter: int = 0, offset: int = 0) -> Float[Tensor, "*shape"]:
    zero = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    return perturb(zero, scale=1.0, seed=seed, parameter=parameter, offset=offset, out=zero)


def perturb(
    theta: Float[Tensor, "*shape"],
    *,
    scale: float,
    seed: Any,
    parameter: int = 0,
    offset: int = 0,
    keep: float = 1.0,
    out: Tensor | None = None,
) -> Float[Tensor, "*shape"]:
    result = torch.empty(theta.shape, dtype=theta.dtype, device=theta.device) if out is None else out
    source, target = theta.detach().reshape(-1), result.detach().reshape(-1)
    if theta.device.type == "cpu" and theta.dtype != torch.float64:
        _on_cpu(source, target, scale, keep, _words(seed), parameter, offset)
        return result
    for start, z in _chunks(source.numel(), theta.dtype, theta.device, seed, parameter, offset):
        old, new = source[start : start + z.numel()], target[start : start + z.numel()]
        # Widened first: a 16-bit weight is rounded once, after the sum.
        new.copy_(z.mul_(scale).add_(old.to(z.dtype), alpha=keep))
    return result


def _on_cpu(
    source: Tensor, target: Tensor, scale: float, keep: float, words: tuple[int, int], parameter: int, offset: int
) -> None:
    """float32 in one compiled loop; 16 bits widened by chunks, and rounded once, after the sum."""
    from papers.zo2.kernel import compiled

    numbers = np.float32(scale), np.float32(keep), *(np.uint64(each) for each in (*words, parameter))
    if source.dtype == torch.float32:
        compiled.perturb(source.numpy(), target.numpy(), *numbers, offset)
        return
    for start in range(0, source.numel(), CHUNK):
        wide = source[start : start + CHUNK].to(torch.float32)
        compiled.perturb(wide.numpy(), wide.numpy(), *numbers, offset + start)
        target[start : start + CHUNK] = wide


def _words(seed: Any) -> tuple[int, int]:
    low, high = (int(each) for each in seed.tolist()) if isinstance(seed, Tensor) else (seed & _WORD, seed >> 32)
    return low, high


def _chunks(count: int, dtype: torch.dtype, device: torch.device, seed: Any, parameter: int, offset: int) -> Any:
    """(start, z) of each chunk; z may be written to and is overwritten by the next."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    low, high = _words(seed)
    draw = _compiled if device.type == "cpu" else _plain
    half, whole = torch.empty(2, CHUNK // 2, dtype=kind, device=device), torch.empty(CHUNK, dtype=kind, device=device)
    # Chunks end at multiples of CHUNK of the parameter, so that an element meets the same instructions in every slice.
    start = 0
    while start < count:
        at = (offset + start) // CHUNK * CHUNK
        skip = offset + start - at
        size = min(CHUNK - skip, count - start)
        blocks = -(-(skip + size) // 4)
        (radius, angle), z = half[:, : 2 * blocks], whole[: 4 * blocks]
        draw(low, high, parameter, at // 4, radius, angle)
        radius.log_().mul_(-2).sqrt_()
        angle.mul_(2 * math.pi)
        torch.cos(angle, out=z[::2]).mul_(radius)
        torch.sin(angle, out=z[1::2]).mul_(radius)
        yield start, z[skip : skip + size]
        start += size


def _compiled(low: int, high: int, parameter: int, first: int, odd: Tensor, even: Tensor) -> None:
    from papers.zo2.kernel.compiled import uniforms

    uniforms(*(np.uint64(each) for each in (low, high, parameter, first)), odd.numpy(), even.numpy())


def _plain(low: int, high: int, parameter: int, first: int, odd: Tensor, even: Tensor) -> None:
    """The same in operations of PyTorch, for any device."""
    block = torch.arange(first, first + odd.numel() // 2, device=odd.device)
    zero = torch.zeros_like(block)
    words = torch.stack(_rounds(block, zero, zero + parameter, zero, low, high), 1)
    uniform = ((words >> 9).to(odd.dtype) + 0.5) * 2.0**-23
    odd.copy_(uniform[:, ::2].reshape(-1))
    even.copy_(uniform[:, 1::2].reshape(-1))


def _rounds(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, low: int, high: int) -> tuple[Tensor, ...]:
    """Ten rounds on int64: the product of two words may overflow the sign, which leaves all 64 bits as they should be."""
    for _ in range(10):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32) & _WORD ^ c1 ^ low, b & _WORD, (a >> 32) & _WORD ^ c3 ^ high, a & _WORD
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return c0, c1, c2, c3
