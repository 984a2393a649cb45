"""Decayed causal linear attention in Triton: launches and gradients; the kernels are in ``triton_kernels``.

The gradients are attentions themselves, with the roles exchanged: dq reads dO against V and sums K, forwards in time; dk
reads V against dO and sums Q, and dv reads K against Q and sums dO, both backwards in time. So one kernel, which walks over
blocks with a slice of the state, serves the output and the three state terms of the backward ("inter"); the terms within
a block ("intra") have a kernel that is parallel over blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops import Shipped
from kernels.linear_attention.triton_kernels import left_kernel, prefix_kernel, states_kernel, walk_kernel, within_kernel

BLOCKS = (16, 32)
"""Blocks that fit into registers on every target; larger ones spill."""


def lightning_attention(
    q: Float[Tensor, "batch head n d"],
    k: Float[Tensor, "batch head n d"],
    v: Float[Tensor, "batch head n e"],
    slope: Float[Tensor, " head"],
    *,
    initial_state: Float[Tensor, "batch head d e"] | None = None,
    return_state: bool = False,
    block: int | None = None,
    variant: str = "loop",
) -> Any:
    """O_i = [(Q_i K_i^T) . M] V_i + lambda^r Q_i S, S <- lambda^B S + (lambda^(B-r) K_i)^T V_i; see the package."""
    if q.dtype == torch.float64:
        raise ValueError("lightning_attention: backend 'triton' computes in float32, got float64; use backend='torch'")
    if block is not None and block not in BLOCKS:
        listed = " or ".join(map(str, BLOCKS))
        raise ValueError(f"lightning_attention: backend 'triton' offers blocks of {listed}, got {block}; None chooses")
    batch, heads, n, d = q.shape
    if 0 in (batch, heads, n, d, v.shape[-1]):
        o = torch.zeros_like(v)
        state = q.new_zeros(batch, heads, d, v.shape[-1], dtype=torch.float32) if initial_state is None else initial_state.float()
        return (o, state) if return_state else o
    qs, ks, vs = (rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v))
    start = None if initial_state is None else rearrange(initial_state.float(), "b h d e -> (b h) d e")
    rate = slope.detach().float().contiguous()
    o, end = _sliced(qs, ks, vs, start, rate, block or BLOCKS[-1], variant, return_state)
    o = rearrange(o, "(b h) n e -> b h n e", b=batch)
    return o if end is None else (o, rearrange(end, "(b h) d e -> b h d e", b=batch))


def _sliced(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, rate: Tensor, block: int, variant: str, want_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Heads too wide for one program are cut: outputs add over slices of d and join over slices of e."""
    d, e, width = q.shape[-1], v.shape[-1], _widest(q.dtype)
    if max(d, e) <= width:
        return _Attention.apply(q, k, v, start, rate, block, variant, want_state)
    outputs, states = [], []
    for c in range(0, e, width):
        column = slice(c, c + width)
        found = []
        for r in range(0, d, width):
            row = slice(r, r + width)
            part = None if start is None else start[:, row, column]
            found.append(_Attention.apply(q[..., row], k[..., row], v[..., column], part, rate, block, variant, want_state))
        outputs.append(sum(o.float() for o, _ in found).to(v.dtype))
        states.append([state for _, state in found])
    state = torch.cat([torch.cat(rows, 1) for rows in states], -1) if want_state else None
    return torch.cat(outputs, -1), state


class _Attention(torch.autograd.Function):
    """Keeps q, k, v and the first state; the backward walks over the blocks again. A state nobody gave or asked for is None."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, rate: Tensor, block: int, variant: str, want_state: bool
    ) -> Any:
        ctx.set_materialize_grads(False)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        start = None if start is None else start.contiguous()
        ctx.save_for_backward(q, k, v, start, rate)
        ctx.block, ctx.variant = block, variant
        o = torch.empty_like(v)
        if variant == "left":
            _left(q, k, v, o, start, rate, block)
            return o, _far(k, v, start, rate) if want_state else None
        return o, _walk(q, k, v, o, start, rate, block, variant, within=True, last=want_state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dstate: Tensor | None) -> Any:
        q, k, v, start, rate = ctx.saved_tensors
        block, variant = ctx.block, ctx.variant
        do = torch.zeros_like(v) if do is None else do.contiguous()
        dstate = None if dstate is None else dstate.contiguous()
        flipped, dflipped = _transposed(start), _transposed(dstate)
        dq, dk, dv, dstart = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None
        if variant == "left":
            _left(do, v, k, dq, flipped, rate, block)
            _left(v, do, q, dk, dflipped, rate, block, reverse=True)
            _left(k, q, do, dv, dstate, rate, block, reverse=True)
            dstart = None if start is None else _far(q, do, dstate, rate, reverse=True)
        else:
            (g, n, d), e = q.shape, v.shape[-1]
            grid, options = (triton.cdiv(n, block), g), _within_options(q.dtype)
            _launch(within_kernel, grid, q, k, v, do, dq, dk, dv, rate, n, len(rate), d, e, block, **options)
            _walk(do, v, k, dq, flipped, rate, block, variant)
            _walk(v, do, q, dk, dflipped, rate, block, variant, reverse=True)
            dstart = _walk(k, q, do, dv, dstate, rate, block, variant, reverse=True, last=start is not None)
        return dq, dk, dv, dstart, None, None, None, None


def _walk(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, start: Tensor | None, rate: Tensor, block: int, variant: str,
    within: bool = False, reverse: bool = False, last: bool = False,
) -> Tensor | None:  # fmt: skip
    """Write the output (or add the state terms to it) and return the last state, if it is wanted.

    "parallel" first stores the state before every block, then gives each block a program of its own.
    """
    (g, n, d), e, blocks = q.shape, v.shape[-1], triton.cdiv(q.shape[1], block)
    end = q.new_empty(g, d, e, dtype=torch.float32) if last else None
    options = _walk_options(q.dtype, d)
    slices, segments = triton.cdiv(e, options["SLICE"]), 1
    if variant == "parallel":
        segments = blocks
        states = q.new_empty(g, blocks, d, e, dtype=torch.float32)
        _launch(states_kernel, (blocks, slices, g), k, v, states, rate, n, len(rate), d, e, block, reverse, **options)
        chunks = (triton.cdiv(d * e, PREFIX["CHUNK"]), g)
        _launch(prefix_kernel, chunks, states, start, rate, n, d * e, len(rate), block, REVERSE=reverse, **PREFIX)
        start = states
    _launch(
        walk_kernel, (segments, slices, g), q, k, v, o, start, end, rate, n, len(rate), blocks // segments,
        d, e, block, reverse, WITHIN=within, **options,
    )  # fmt: skip
    return end


def _left(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, start: Tensor | None, rate: Tensor, block: int, reverse: bool = False
) -> None:
    (g, n, d), e = q.shape, v.shape[-1]
    options = _walk_options(q.dtype, d)
    grid = (triton.cdiv(n, block), triton.cdiv(e, options["SLICE"]), g)
    _launch(left_kernel, grid, q, k, v, o, start, rate, n, len(rate), d, e, block, reverse, **options)


def _far(k: Tensor, v: Tensor, start: Tensor | None, rate: Tensor, reverse: bool = False) -> Tensor:
    """The state at the far end of the sequence in one product, for the variant that walks nowhere."""
    n = k.shape[1]
    rate = rate.repeat(len(k) // len(rate))[:, None, None]
    row = torch.arange(1, n + 1, device=k.device, dtype=torch.float32)[:, None]
    added = (k.float() * torch.exp(-rate * (row if reverse else n - row))).mT @ v.float()
    return added if start is None else torch.exp(-rate * n) * start + added


def _transposed(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.mT.contiguous()


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    # On the meta device everything is allocated and nothing runs: the memory of any size can be counted.
    if not arguments[0].is_meta:
        kernel[grid](*arguments, **options)


def _widest(dtype: torch.dtype) -> int:
    """The products of float32 keep their factors in registers."""
    return 64 if dtype == torch.float32 else 128


def _walk_options(dtype: torch.dtype, width: int) -> dict[str, Any]:
    wide = max(16, triton.next_power_of_2(width))
    narrow = 16 if dtype == torch.float32 else 32
    return {"WIDTH": wide, "SLICE": narrow, "PRECISION": _precision(dtype), "num_warps": 8, "num_stages": 1}


def _within_options(dtype: torch.dtype) -> dict[str, Any]:
    return {"CHUNK": 32, "PRECISION": _precision(dtype), "num_warps": 8, "num_stages": 1}


def _precision(dtype: torch.dtype) -> str:
    # Half types have at most 11 significant bits, which tf32 holds: tensor cores without another loss at the door.
    return "ieee" if dtype == torch.float32 else "tf32"


PREFIX = {"CHUNK": 1024, "num_warps": 4, "num_stages": 1}


def shipped() -> Iterator[Shipped]:
    """The kernels that d = e = 64 and 128 launch, with states that come in and go out; and, at the default block, without.

    float32 heads of 128 are cut in two, so they launch the kernels of 64.
    """
    for dtype, d in ((torch.bfloat16, 128), (torch.bfloat16, 64), (torch.float32, 64)):
        for block in reversed(BLOCKS):
            walk = _walk_options(dtype, d) | {"d": d, "e": d, "BLOCK": block}
            bare = {"first": None, "last": None}
            for states in ({}, bare) if block == BLOCKS[-1] else ({},):
                yield _shipped("walk-within", walk_kernel, dtype, walk | states | {"WITHIN": True, "REVERSE": False})
                for reverse in (False, True):
                    yield _shipped("walk-between", walk_kernel, dtype, walk | states | {"WITHIN": False, "REVERSE": reverse})
                    yield _shipped("left", left_kernel, dtype, walk | states | {"REVERSE": reverse})
            for reverse in (False, True):
                yield _shipped("states", states_kernel, dtype, walk | {"REVERSE": reverse})
            yield _shipped("within", within_kernel, dtype, _within_options(dtype) | {"d": d, "e": d, "BLOCK": block})
    for block, reverse, states in itertools.product(BLOCKS, (False, True), ({}, {"first": None})):
        yield _shipped("prefix", prefix_kernel, torch.float32, PREFIX | states | {"BLOCK": block, "REVERSE": reverse})


def _shipped(name: str, kernel: Any, dtype: torch.dtype, options: dict[str, Any]) -> Shipped:
    kind = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    types = dict.fromkeys(("q", "k", "v", "o", "do", "dq", "dk", "dv"), f"*{kind}")
    types |= dict.fromkeys(("slope", "first", "last", "states"), "*fp32")
    constants = {x: value for x, value in options.items() if x in kernel.arg_names}
    signature = {x: "constexpr" if x in constants else types.get(x, "i32") for x in kernel.arg_names}
    parts = [name, "reverse" if options.get("REVERSE") else "", "bare" if "first" in constants else "", kind]
    parts += [f"d{options['d']}" if "d" in options else "", f"block{options['BLOCK']}"]
    form = "-".join(part for part in parts if part)
    return Shipped(form, kernel, signature, constants, {x: options[x] for x in ("num_warps", "num_stages")})
