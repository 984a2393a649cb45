"""Counts of what is really built: multiply-adds and outputs as a model runs, and the bytes JAX keeps for its backward pass.

For PyTorch the latter are :class:`common.allocations.Saved`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from common.nas.network import Count


def count_torch(model: Any, *inputs: Any) -> Count:
    """Count a module's convolutions and linear layers as it runs on these inputs; the meta device makes it free.

    Macs and activations are those of all images together, parameters those of the module.
    """
    import torch
    from torch import nn

    total = [0, 0]

    def seen(module: Any, _: Any, output: Any) -> None:
        each = module.weight.numel() // module.weight.shape[0]  # multiply-adds of one output
        total[0] += each * output.numel()
        total[1] += output.numel()

    hooks = [
        module.register_forward_hook(seen)
        for module in model.modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Count(total[0], sum(each.numel() for each in model.parameters()), total[1])


def count_jax(function: Callable[..., Any], *arguments: Any) -> Count:
    """Count the convolutions and products of matrices in what JAX traces of a function; parameters are 0, as it has none.

    Arguments may be ``jax.ShapeDtypeStruct``. A scan counts its body as often as it runs; a branch counts as its dearest.
    """
    import jax

    macs, activations = of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)
    return Count(macs, 0, activations)


def of_jaxpr(jaxpr: Any) -> tuple[int, int]:
    """(multiply-adds, activations) of the equations of a jaxpr and of those within them."""
    macs = activations = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            each = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            each = math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        else:
            inner = [of_jaxpr(getattr(each, "jaxpr", each)) for each in inner_jaxprs(equation.params)]
            if inner:
                times = equation.params.get("length", 1) if name == "scan" else 1
                found = max(inner) if name == "cond" else tuple(map(sum, zip(*inner, strict=True)))
                macs, activations = macs + times * found[0], activations + times * found[1]
            continue
        macs, activations = macs + each * out, activations + out
    return macs, activations


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else [value]:
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield each


def saved_jax(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes that ``jax.vjp(function, *arguments)`` holds for the backward pass; nothing is computed.

    What XLA may merge or recompute later is not seen: it is what JAX's differentiation asks for. Arguments that the backward
    pass needs are among them.
    """
    import jax

    _, pullback = jax.eval_shape(lambda *inputs: jax.vjp(function, *inputs), *arguments)
    return sum(math.prod(each.shape) * each.dtype.itemsize for each in jax.tree.leaves(pullback))
