"""PyTorch: one compiled pass on the CPU, whole-array operations on every other device and while tracing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .factors import Factors


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
    factors = Factors.of(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    p, g, m, v = (x.detach() for x in (parameter, gradient, mean, square))
    if parameter.device.type == "cpu" and not torch.compiler.is_compiling():
        return _compiled(p, g, m, v, factors, out)
    g = torch.add(g.to(p.dtype), p, alpha=factors.coupled) if factors.coupled else g.to(p.dtype)
    m = torch.lerp(m, g, factors.new_mean)
    v = torch.addcmul(v * factors.keep_square, g, g, value=factors.new_square)
    scale = torch.sqrt(v).mul_(factors.root).add_(factors.epsilon)
    p = torch.addcdiv(p * factors.shrink, m, scale, value=-factors.rate)
    if out is None:
        return p, m, v
    with torch.no_grad():
        for target, value in zip(out, (p, m, v), strict=True):
            target.copy_(value)
    return out


def _compiled(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, factors: Factors, out: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    from . import compiled

    found = (torch.empty_like(p), torch.empty_like(p), torch.empty_like(p)) if out is None else out
    kind = str(g.dtype).removeprefix("torch.")
    p, g, m, v = (x.contiguous() for x in (p, g, m, v))
    arrays = tuple(x.numpy() for x in (p, g.view(torch.uint16) if kind in compiled.KINDS else g, m, v))
    in_place = all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in zip(found, (p, m, v), strict=True))
    targets = (arrays[0], *arrays[2:]) if in_place else tuple(x.detach().numpy() for x in found)
    compiled.step(arrays, targets, kind, factors, torch.get_num_threads())
    if out is not None:
        # Autograd does not see what NumPy writes; who saved a tensor of out for the backward is to hear of it.
        torch.autograd.graph.increment_version(out)
    return found
