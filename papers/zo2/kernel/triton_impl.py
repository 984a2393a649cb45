"""Noise in Triton: one program draws the noise of its elements in registers and adds it, so z is never in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt32
from torch import Tensor

from common.ops import Shipped

BLOCK, WARPS = 256, 4
"""Counters of a program, each of which gives four elements."""


def philox(counter: UInt32[Tensor, "n 4"], key: UInt32[Tensor, " 2"]) -> UInt32[Tensor, "n 4"]:
    low, high = (int(each) for each in key.tolist())
    # Triton's types of torch tensors have signs; the bits are the same.
    out = torch.empty(counter.shape, dtype=torch.int32, device=counter.device)
    if n := counter.shape[0]:
        words = counter.contiguous().view(torch.int32)
        philox_kernel[(triton.cdiv(n, BLOCK),)](words, out, n, _signed(low | high << 32), BLOCK=BLOCK, num_warps=WARPS)
    return out.view(torch.uint32)


def gaussian(like: Float[Tensor, "*shape"], *, seed: Any, parameter: int = 0, offset: int = 0) -> Float[Tensor, "*shape"]:
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return _launch(out, out, 1.0, 0.0, seed, parameter, offset, load=False)


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
    return _launch(theta.detach().contiguous(), result, scale, keep, seed, parameter, offset, load=True)


def _launch(theta: Tensor, out: Tensor, scale: float, keep: float, seed: Any, parameter: int, offset: int, load: bool) -> Tensor:
    if isinstance(seed, Tensor):
        low, high = (int(each) for each in seed.tolist())
        seed = low | high << 32
    if n := theta.numel():
        first, skip = offset // 4, offset % 4
        grid = (triton.cdiv(n + skip, 4 * BLOCK),)
        perturb_kernel[grid](
            theta, out, n, float(scale), float(keep), _signed(seed), parameter, first, skip, LOAD=load, BLOCK=BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


@triton.jit
@no_type_check
def perturb_kernel(theta_ptr, out_ptr, n, scale, keep, seed, parameter, first, skip, LOAD: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    block = (first + start + tl.arange(0, BLOCK)).to(tl.uint32)
    zero = tl.zeros([BLOCK], tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed.to(tl.uint64), block, zero, zero + parameter.to(tl.uint32), zero)
    r0, r2 = tl.sqrt(-2.0 * tl.log(_uniform(w0))), tl.sqrt(-2.0 * tl.log(_uniform(w2)))
    a1, a3 = 6.283185307179586 * _uniform(w1), 6.283185307179586 * _uniform(w3)
    # Joined so that the four elements of a counter lie side by side.
    z = tl.join(tl.join(r0 * tl.cos(a1), r2 * tl.cos(a3)), tl.join(r0 * tl.sin(a1), r2 * tl.sin(a3)))
    z = tl.reshape(z, [4 * BLOCK]) * scale
    index = 4 * start - skip + tl.arange(0, 4 * BLOCK)
    inside = (index >= 0) & (index < n)
    if LOAD:
        z += keep * tl.load(theta_ptr + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + index, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def philox_kernel(counter_ptr, out_ptr, n, seed, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    at = counter_ptr + 4 * row
    c0 = tl.load(at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c1 = tl.load(at + 1, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c2 = tl.load(at + 2, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c3 = tl.load(at + 3, mask=inside, other=0).to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox(seed.to(tl.uint64), c0, c1, c2, c3)
    to = out_ptr + 4 * row
    tl.store(to, w0.to(tl.int32, bitcast=True), mask=inside)
    tl.store(to + 1, w1.to(tl.int32, bitcast=True), mask=inside)
    tl.store(to + 2, w2.to(tl.int32, bitcast=True), mask=inside)
    tl.store(to + 3, w3.to(tl.int32, bitcast=True), mask=inside)


@triton.jit
@no_type_check
def _uniform(word):
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


def shipped() -> Iterator[Shipped]:
    for kind in ("fp32", "fp16", "bf16"):
        signature = {"theta_ptr": f"*{kind}", "out_ptr": f"*{kind}", "n": "i32", "scale": "fp32", "keep": "fp32", "seed": "i64",
                     "parameter": "i32", "first": "i32", "skip": "i32", "LOAD": "constexpr", "BLOCK": "constexpr"}  # fmt: skip
        yield Shipped(f"perturb-{kind}", perturb_kernel, signature, {"LOAD": True, "BLOCK": BLOCK}, {"num_warps": WARPS})
    signature = {"counter_ptr": "*i32", "out_ptr": "*i32", "n": "i32", "seed": "i64", "BLOCK": "constexpr"}
    yield Shipped("philox", philox_kernel, signature, {"BLOCK": BLOCK}, {"num_warps": WARPS})
