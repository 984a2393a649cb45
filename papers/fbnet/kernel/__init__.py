"""The grouped 1 x 1 convolution whose outputs are shuffled, as one operation: FBNet's blocks with two groups begin with it.

Channels of different groups do not see each other, so the outputs are dealt out to the groups of what comes next. The libraries
write the convolution first and then copy it in the other order; here it is written there at once.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from common.ops import framework, operation

__all__ = ["group_pointwise_shuffle"]


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x", "weight"))
def group_pointwise_shuffle(
    x: Float[Any, "*places inputs"], weight: Float[Any, "group each_in each_out"], *, backend: str | None = None
) -> Float[Any, "*places outputs"]:
    """y[n, j G + g] = sum_i x[n, g I + i] w[g, i, j], for G groups of I inputs and J outputs each.

    Sums are float32, float64 for float64; only PyTorch and JAX compute in float64. There is no bias: a normalisation follows.
    On a GPU, gradients of the weight are summed in an order that does not depend on which program is first. Gradients of
    gradients are not offered.

    Args:
        x: images or any places, channels last; G I of them. float16, bfloat16, float32 or float64.
        weight: for each group a matrix from its inputs to its outputs, in the dtype of x. A library's (outputs, I) weight of a
            grouped convolution is this with axes (g j) i.

    Returns:
        y in the dtype of x, G J channels.

    Raises:
        ValueError: shapes that do not fit, or an axis of the weight that is 0.
        TypeError: integers, mixed dtypes, what is no array.

    Source: Wu et al., FBNet (arXiv 1812.03443), section 3.1; the shuffle is that of Zhang et al., ShuffleNet (arXiv 1707.01083).
    """
    for what, array in (("x", x), ("weight", weight)):
        if framework(array) is None:
            raise TypeError(
                f"group_pointwise_shuffle: {what} is a {type(array).__name__}; wanted a torch tensor, jax or NumPy array"
            )
    kinds = str(x.dtype), str(weight.dtype)
    if kinds[0] != kinds[1] or "float" not in kinds[0]:
        raise TypeError(
            f"group_pointwise_shuffle: x is {kinds[0]}, weight {kinds[1]}; wanted the same floating type, convert one or both"
        )
    shapes = tuple(x.shape), tuple(weight.shape)
    if len(shapes[1]) != 3 or 0 in shapes[1] or not shapes[0] or shapes[0][-1] != shapes[1][0] * shapes[1][1]:
        raise ValueError(
            f"group_pointwise_shuffle: x has shape {shapes[0]}, weight {shapes[1]}; wanted (..., groups x inputs of each) and "
            "(groups, inputs of each, outputs of each), none of the latter 0"
        )
    return group_pointwise_shuffle.operation(x, weight, backend=backend)
