"""PyTorch: for few groups one product with the weights spread out, for many one product for each group and then the shuffle.

Spread out, the weights are one matrix that has zeros between groups and its columns in the shuffled order, W[g I + i, j G + g] =
w[g, i, j]. The product writes the outputs where they belong. It multiplies zeros too, but what it saves, a pass over memory and the
convolution's own preparation, is more as long as groups are few.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

FEW = 2
"""Groups up to which zeros are multiplied."""


def group_pointwise_shuffle(
    x: Float[Tensor, "*places inputs"], weight: Float[Tensor, "group each_in each_out"]
) -> Float[Tensor, "*places outputs"]:
    if len(weight) <= FEW:
        return x @ spread(weight)
    inputs = rearrange(x, "... (group each) -> ... group 1 each", group=len(weight))
    return rearrange(inputs @ weight, "... group 1 each -> ... (each group)")


def spread(weight: Float[Tensor, "group each_in each_out"]) -> Float[Tensor, "inputs outputs"]:
    groups, inputs, outputs = weight.shape
    whole = weight.new_zeros(groups, inputs, outputs, groups)
    whole.diagonal(0, 0, 3).copy_(weight.permute(1, 2, 0))
    return rearrange(whole, "group i j to -> (group i) (j to)")
