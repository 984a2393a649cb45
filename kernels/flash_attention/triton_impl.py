"""Tiled attention in Triton: launches and gradients; the kernels are in ``triton_kernels``.

One kernel for o and lse; the gradients come from two, one walking over keys for dq and one over queries for dk and dv, so
that nothing is added up across programs and a run twice gives the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped
from kernels.flash_attention.triton_kernels import dkdv_kernel, dq_kernel, forward_kernel

WIDEST = 128
FAR = 2**30
"""Farther than any sequence is long."""

# (rows of queries, rows of keys, warps, stages) by kernel, kind of numbers, and whether heads are wider than 64: the largest
# tiles that do not spill. Products of float32 keep their factors in registers; AMD has less shared memory.
NVIDIA = {
    ("forward", "half"): ((128, 64, 8, 3), (128, 64, 8, 3)),
    ("dq", "half"): ((64, 64, 4, 2), (64, 64, 8, 2)),
    ("dkdv", "half"): ((32, 64, 4, 2), (64, 64, 8, 2)),
    ("forward", "single"): ((64, 32, 8, 1), (32, 32, 8, 1)),
    ("dq", "single"): ((32, 32, 8, 1), (16, 16, 8, 1)),
    ("dkdv", "single"): ((32, 32, 8, 1), (16, 32, 8, 1)),
}
AMD = {
    ("forward", "half"): ((128, 64, 8, 1), (128, 64, 8, 1)),
    ("dq", "half"): ((64, 64, 4, 1), (64, 32, 4, 1)),
    ("dkdv", "half"): ((32, 64, 4, 1), (32, 32, 4, 1)),
    ("forward", "single"): ((32, 32, 4, 1), (32, 32, 4, 1)),
    ("dq", "single"): ((32, 32, 4, 1), (16, 16, 8, 1)),
    ("dkdv", "single"): ((16, 32, 4, 1), (16, 32, 4, 1)),
}
SMALL = (16, 16)
"""The tile that can be asked for, whatever the numbers and the GPU: for few queries, or few visible keys."""

KERNELS = {"forward": forward_kernel, "dq": dq_kernel, "dkdv": dkdv_kernel}


class _Call(NamedTuple):
    """What all kernels of one attention take beside its arrays."""

    causal: bool
    window: int | None
    sinks: int
    shift: int
    scale: float
    small: bool


def flash_attention(
    q: Float[Tensor, "batch head seq dim"],
    k: Float[Tensor, "batch kv_head keys dim"],
    v: Float[Tensor, "batch kv_head keys value_dim"],
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int = 0,
    query_start: int = 0,
    key_start: int = 0,
    scale: float = 1.0,
    block: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "batch head seq value_dim"], Float[Tensor, "batch head seq"]]:
    """m' = max(m, max_j s), l <- e^(m-m') l + sum_j e^(s-m'), o <- e^(m-m') o + e^(s-m') v; see the package."""
    if q.dtype == torch.float64:
        raise ValueError("flash_attention: backend 'triton' computes in float32, got float64; use backend='torch'")
    if max(q.shape[3], v.shape[3]) > WIDEST:
        raise ValueError(
            f"flash_attention: backend 'triton' takes heads up to {WIDEST} wide, got {q.shape[3]} and {v.shape[3]}; "
            "use backend='torch'"
        )
    if block not in (None, SMALL):
        raise ValueError(f"flash_attention: backend 'triton' offers block {SMALL} or None, got {block}")
    (batch, heads, seq, _), keys = q.shape, k.shape[2]
    if 0 in (batch, heads, seq, keys):
        return q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -torch.inf, dtype=torch.float32)
    # Distances beyond every window and sequence are all the same, and fit into 32 bits.
    window = None if window is None else min(window, FAR)
    shift = min(max(query_start - key_start, -seq), keys + (window or 0))
    call = _Call(causal, window, min(max(sinks - key_start, 0), keys), shift, scale, block is not None)
    folded = (rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v))
    o, lse = _Attention.apply(*folded, call)
    return rearrange(o, "(b h) n e -> b h n e", b=batch), rearrange(lse, "(b h) n -> b h n", b=batch)


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, o and lse."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: _Call) -> Any:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        o = q.new_empty(*q.shape[:2], v.shape[2])
        lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        _launch("forward", call, (q, k, v, o, lse), q, k, v)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> Any:
        q, k, v, o, lse = ctx.saved_tensors
        do = torch.zeros_like(o) if do is None else do.contiguous()
        offset = -(do.float() * o.float()).sum(-1)
        offset = offset if dlse is None else offset + dlse
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _launch("dq", ctx.call, (q, k, v, do, lse, offset, dq), q, k, v)
        _launch("dkdv", ctx.call, (q, k, v, do, lse, offset, dk, dv), q, k, v)
        return dq, dk, dv, None


def _launch(name: str, call: _Call, arrays: tuple[Tensor, ...], q: Tensor, k: Tensor, v: Tensor) -> None:
    (heads, seq, d), (groups, keys, e) = q.shape, v.shape
    rows, columns, warps, stages = _tile(name, _kind(q.dtype), max(d, e), torch.version.hip is not None, call.small)
    grid = (triton.cdiv(keys, columns), groups) if name == "dkdv" else (triton.cdiv(seq, rows), heads)
    # On the meta device everything is allocated and nothing runs: the memory of any size can be counted.
    if q.is_meta:
        return
    KERNELS[name][grid](
        *arrays, seq, keys, heads // groups, call.shift, call.window or FAR, call.sinks, call.scale,
        **_constants(d, e, rows, columns, call.causal, call.window is not None, q.dtype), num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _tile(name: str, kind: str, width: int, amd: bool, small: bool) -> tuple[int, int, int, int]:
    if small:
        return (*SMALL, 8 if kind == "single" else 4, 1)
    return (AMD if amd else NVIDIA)[name, kind][width > 64]


def _constants(d: int, e: int, rows: int, columns: int, causal: bool, window: bool, dtype: torch.dtype) -> dict[str, Any]:
    # tf32 holds the 11 significant bits of half types; it is nothing to them, and float32 keeps all of its own.
    precision = "ieee" if dtype == torch.float32 else "tf32"
    wide, value = (max(16, triton.next_power_of_2(x)) for x in (d, e))
    return {"d": d, "e": e, "ROWS": rows, "COLUMNS": columns, "WIDTH": wide, "VALUE": value} | {
        "CAUSAL": causal, "WINDOW": window, "PRECISION": precision,
    }  # fmt: skip


def _kind(dtype: torch.dtype) -> str:
    return "single" if dtype == torch.float32 else "half"


def shipped() -> Iterator[Shipped]:
    """Heads of 64 and 128 without a mask, causal and with a window; the small tile with the window alone."""
    everywhere = ("sm_80", "sm_90", "sm_100", "gfx942")
    for dtype, d, name in itertools.product((torch.bfloat16, torch.float32), (128, 64), KERNELS):
        yield _shipped(name, dtype, d, _tile(name, _kind(dtype), d, amd=False, small=True), True, True, everywhere)
        for amd, targets in ((False, everywhere[:3]), (True, everywhere[3:])):
            tile = _tile(name, _kind(dtype), d, amd, small=False)
            for causal, window in ((True, True), (True, False), (False, False)):
                yield _shipped(name, dtype, d, tile, causal, window, targets)


def _shipped(
    name: str, dtype: torch.dtype, d: int, tile: tuple[int, int, int, int], causal: bool, window: bool, targets: tuple[str, ...]
) -> Shipped:
    kernel, kind = KERNELS[name], {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    constants = _constants(d, d, tile[0], tile[1], causal, window, dtype)
    types = dict.fromkeys(("q", "k", "v", "o", "do", "dq", "dk", "dv"), f"*{kind}")
    types |= {"lse": "*fp32", "offset": "*fp32", "scale": "fp32"}
    signature = {x: "constexpr" if x in constants else types.get(x, "i32") for x in kernel.arg_names}
    mask = "window" if window else "causal" if causal else "all"
    device = "" if len(targets) > 3 else "-amd" if "gfx942" in targets else "-nvidia"
    form = f"{name}-{kind}-d{d}-{mask}-{tile[0]}x{tile[1]}{device}"
    return Shipped(form, kernel, signature, constants, {"num_warps": tile[2], "num_stages": tile[3]}, targets)
