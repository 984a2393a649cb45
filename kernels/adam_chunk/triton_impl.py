"""Triton: a program reads, updates and writes one block of all four arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from common.ops import Shipped

from .factors import Factors

BLOCK = 1024
OPTIONS = {"num_warps": 4, "num_stages": 1}


def adam_chunk(
    parameter: Float[Tensor, " size"],
    gradient: Float[Tensor, " size"],
    mean: Float[Tensor, " size"],
    square: Float[Tensor, " size"],
    *,
    step: int,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """p = shrink p - rate m / (sqrt(v) root + epsilon); see the package."""
    if parameter.dtype == torch.float64:
        raise ValueError("adam_chunk: backend 'triton' computes in float32, got float64; use backend='torch'")
    factors = Factors.of(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    arrays = tuple(x.detach().contiguous() for x in (parameter, gradient, mean, square))
    found = tuple(torch.empty_like(x) for x in (arrays[0], *arrays[2:])) if out is None else out
    size = parameter.numel()
    # On the meta device everything is allocated and nothing runs: the memory of any size can be counted.
    if size and not parameter.is_meta:
        adam_kernel[(triton.cdiv(size, BLOCK),)](*arrays, *(x.detach() for x in found), size, *factors, BLOCK=BLOCK, **OPTIONS)
        if out is not None:
            torch.autograd.graph.increment_version(out)
    return found[0], found[1], found[2]


@triton.jit
@no_type_check
def adam_kernel(
    parameter, gradient, mean, square, out_parameter, out_mean, out_square, size,
    shrink, coupled, new_mean, keep_square, new_square, root, rate, epsilon, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    p = tl.load(parameter + place, mask=inside, other=0.0)
    g = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) + coupled * p
    m = tl.load(mean + place, mask=inside, other=0.0)
    v = tl.load(square + place, mask=inside, other=0.0)
    m += new_mean * (g - m)
    v = keep_square * v + new_square * g * g
    tl.store(out_parameter + place, shrink * p - rate * m / (tl.sqrt(v) * root + epsilon), mask=inside)
    tl.store(out_mean + place, m, mask=inside)
    tl.store(out_square + place, v, mask=inside)


def shipped() -> Iterator[Shipped]:
    for kind in ("fp32", "bf16", "fp16"):
        signature = dict.fromkeys(adam_kernel.arg_names, "fp32")
        signature |= dict.fromkeys(adam_kernel.arg_names[:7], "*fp32")
        signature |= {"gradient": f"*{kind}", "size": "i32", "BLOCK": "constexpr"}
        yield Shipped(f"step-{kind}", adam_kernel, signature, {"BLOCK": BLOCK}, OPTIONS)
