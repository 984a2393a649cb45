"""The closed form over a grid, and its slopes, in PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from papers.fast_model_scaling.complexity import Complexity
from papers.fast_model_scaling.specs import Spec
from papers.fast_model_scaling.sweep import scaled


def grid(base: Spec, alphas: Float[Tensor, " alphas"], s: Float[Tensor, " s"], *, rounded: bool = True) -> Complexity:
    """(alphas, s) arrays of multiply-adds, parameters and activations."""

    def one(alpha: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(scaled(base, alpha, s, rounded=rounded))  # type: ignore[return-value]

    over_s = torch.func.vmap(one, in_dims=(None, 0))
    return Complexity(*torch.func.vmap(over_s, in_dims=(0, None))(alphas, s))


def slopes(
    base: Spec, alphas: Float[Tensor, " alphas"], s: Float[Tensor, " s"], *, stem: bool = True
) -> Float[Tensor, "3 alphas s"]:
    """d log y / d log s of multiply-adds, parameters and activations y, unrounded."""

    def logs(alpha: Tensor, log_s: Tensor) -> Tensor:
        return torch.log(torch.stack(scaled(base, alpha, torch.exp(log_s), rounded=False, stem=stem)))

    def slope(alpha: Tensor, log_s: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: logs(alpha, x), (log_s,), (torch.ones_like(log_s),))[1]

    over_s = torch.func.vmap(slope, in_dims=(None, 0), out_dims=1)
    return torch.func.vmap(over_s, in_dims=(0, None), out_dims=1)(alphas, torch.log(s))
