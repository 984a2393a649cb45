"""Counts of what is really built, in PyTorch on the meta device and in JAX from the trace; nothing is computed."""

from __future__ import annotations

import math
from typing import Any

from common.nas.counting import count_torch, inner_jaxprs, of_jaxpr
from papers.fast_model_scaling.complexity import Complexity
from papers.fast_model_scaling.specs import Spec


def built_torch(spec: Spec) -> Complexity:
    """Hooks on every convolution, linear layer and pooling of the module see one image pass."""
    import torch
    from torch import nn

    from papers.fast_model_scaling.model_torch import Network

    model = Network(spec.network(), None, device="meta").eval()
    pooled = [0]

    def seen(module: Any, inputs: Any, output: Any) -> None:
        pooled[0] += output.numel()

    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(seen)
    found = count_torch(model, torch.empty(1, spec.resolution, spec.resolution, 3, device="meta"))
    biases = sum(
        module.bias.numel()
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None
    )
    return Complexity(found.macs + biases, found.parameters, found.activations + pooled[0])


def built_jax(spec: Spec) -> Complexity:
    """The equations that JAX traces of the module on one image."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from papers.fast_model_scaling.model_jax import Network

    model = nnx.eval_shape(lambda: Network(spec.network(), None))
    model.eval()
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, spec.resolution, spec.resolution, 3), jnp.float32)

    def forward(state: Any, x: Any) -> Any:
        return nnx.merge(graph, state)(x)

    jaxpr = jax.make_jaxpr(forward)(state, image).jaxpr
    flops, activations = of_jaxpr(jaxpr)
    sizes, biases = 0, 0
    for path, leaf in jax.tree.leaves_with_path(nnx.state(model, nnx.Param)):
        names, size = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}, math.prod(leaf.shape)
        sizes += size
        biases += size if "bias" in names and "norm" not in names else 0
    return Complexity(flops + biases, sizes, activations + _pooled(jaxpr))


def _pooled(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("reduce_window_max"):
            total += math.prod(equation.outvars[0].aval.shape)
        total += sum(_pooled(getattr(each, "jaxpr", each)) for each in inner_jaxprs(equation.params))
    return total
