"""PyTorch: masks on any device, and on the CPU two ways to evaluate only the branch that a point needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import formulas
from .branches import BRANCHES, FALLBACK, LOG_I, LOG_K, RATIO_FAR, RATIO_I, RATIO_K, which_branch

Evaluate = Callable[[int, int | None, Tensor, Tensor], Tensor]


def log_bessel_i(
    order: Float[Tensor, "*order"],
    x: Float[Tensor, "*x"],
    *,
    branch: str | None = None,
    variant: str | None = None,
) -> Float[Tensor, "*out"]:
    """log I_v(x). ``variant``: masked (any device), compacted or compiled (CPU); None takes the fastest."""
    return apply(evaluator(variant), LOG_I, branch, order, x)


def log_bessel_k(
    order: Float[Tensor, "*order"],
    x: Float[Tensor, "*x"],
    *,
    branch: str | None = None,
    variant: str | None = None,
) -> Float[Tensor, "*out"]:
    """log K_v(x); see :func:`log_bessel_i`."""
    return apply(evaluator(variant), LOG_K, branch, order, x)


def bessel_ratio(order: Float[Tensor, "*order"], x: Float[Tensor, "*x"], *, variant: str | None = None) -> Float[Tensor, "*out"]:
    """I_(v+1)(x) / I_v(x); see :func:`log_bessel_i`."""
    return apply(evaluator(variant), RATIO_I, None, order, x)


def apply(evaluate: Evaluate, kind: int, branch: str | None, order: Tensor, x: Tensor) -> Tensor:
    """Broadcast, compute in float64 and return the dtype that came in. Shared with the Triton backend."""
    if torch.is_grad_enabled() and order.requires_grad:
        raise ValueError("log_bessel: the order requires a gradient, but none is defined in the order; pass order.detach()")
    v, z = torch.broadcast_tensors(order.detach().double(), x.double())
    return _Function.apply(v, z, kind, None if branch is None else BRANCHES.index(branch), evaluate).to(x.dtype)


class _Function(torch.autograd.Function):
    """One of the four functions; differentiable in x, any number of times."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, kind: int, branch: int | None, evaluate: Evaluate) -> Tensor:
        return evaluate(kind, branch, v, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        v, x, ctx.kind, _, ctx.evaluate = inputs
        ctx.save_for_backward(v, x, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        v, x, value = ctx.saved_tensors

        def ratio(kind: int, v: Tensor, x: Tensor) -> Tensor:
            return _Function.apply(v, x, kind, None, ctx.evaluate)

        return None, gradient * formulas.slope(torch, ratio, ctx.kind, v, x, value), None, None, None


def evaluator(variant: str | None) -> Evaluate:
    if variant is None:
        return _fastest
    return {"masked": masked, "compacted": compacted, "compiled": compiled}[variant]


def masked(kind: int, branch: int | None, v: Tensor, x: Tensor) -> Tensor:
    """Every branch for every point."""
    return formulas.evaluate(torch, kind, branch, v, x)


def compacted(kind: int, branch: int | None, v: Tensor, x: Tensor) -> Tensor:
    """Points listed by branch, each list through its own branch."""
    shape, v, x = x.shape, v.flatten(), x.flatten()
    out = torch.empty_like(x)
    if kind == RATIO_I:
        chosen = torch.where(v * v + x * x > RATIO_FAR**2, 0, FALLBACK)
    else:
        chosen = which_branch(v, x) if branch is None else torch.full_like(x, branch)
    if kind == RATIO_K:
        chosen = torch.where(chosen == FALLBACK, FALLBACK, 0)
    for index in range(len(BRANCHES)):
        points = (chosen == index).nonzero(as_tuple=True)[0]
        if len(points):
            out[points] = formulas.evaluate_branch(torch, kind, index, v[points], x[points])
    return out.reshape(shape)


def compiled(kind: int, branch: int | None, v: Tensor, x: Tensor) -> Tensor:
    """The same grouping, in compiled parallel loops over chunks."""
    if x.device.type != "cpu":
        raise ValueError(f"variant 'compiled' runs on the cpu, the tensors are on {x.device}; use variant='masked'")
    from . import compiled as native

    forced = -1 if branch is None else branch
    return torch.from_numpy(native.evaluate(kind, forced, v.detach().numpy(), x.detach().numpy(), torch.get_num_threads()))


def _fastest(kind: int, branch: int | None, v: Tensor, x: Tensor) -> Tensor:
    # A graph that is being traced cannot hold the compiled loops.
    native = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return (compiled if native else masked)(kind, branch, v, x)
