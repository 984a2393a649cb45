"""The most memory that one step of fine-tuning holds, measured in both frameworks, for full training, LoRA and QLoRA.

In PyTorch the live bytes of every tensor are counted while a real step runs (:class:`common.allocations.Allocations`). In
JAX the compiled step says what it needs: its arguments, its results beyond them, and its temporaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from common.architecture import Transformer
from papers.qlora.weights import nbytes

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Buffers are assigned before machine code is made, and only they are looked at."""
VARIANTS = ("full", "LoRA-16", "QLoRA")


def peak_torch(a: Transformer, variant: str, *, rank: int, tokens: int, keep: bool = False, seed: int = 0) -> dict[str, int]:
    """Bytes of one step in bfloat16 with Adam's moments in float32: "peak", and what was "held" before the step.

    Args:
        tokens: length of the one sequence.
        keep: hold the dequantised weights from the forward to the backward, which QLoRA does not: a control.
    """
    import torch
    from torch.nn import functional as F

    from common.allocations import Allocations
    from common.models.transformer_torch import TransformerLM
    from papers.qlora import layers_torch as layers

    model = TransformerLM(a, seed=seed, dtype=torch.bfloat16)
    if variant == "QLoRA":
        layers.quantize(model)
        if keep:
            _keep_dense(model)
    if variant != "full":
        layers.add_adapters(model, rank, seed=seed, dtype=torch.bfloat16)
    parameters = layers.trainable(model)
    moments = [[torch.zeros_like(p, dtype=torch.float32) for _ in range(2)] for p in parameters]
    drawn = np.random.default_rng(seed).integers(0, a.vocabulary, (1, tokens + 1))
    batch = torch.from_numpy(drawn)
    with Allocations(*layers.held(model), *(m for pair in moments for m in pair), batch) as counted:
        held = counted.live
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten()).backward()
        del logits
        with torch.no_grad():
            for p, (mean, square) in zip(parameters, moments, strict=True):
                gradient = p.grad.float()
                mean.lerp_(gradient, 0.1)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                p.sub_((1e-4 * mean / (square.sqrt() + 1e-8)).to(p.dtype))
                p.grad = None
    return {"peak": counted.peak, "held": held, "adapters": 0 if variant == "full" else nbytes(parameters)}


def peak_jax(a: Transformer, variant: str, *, rank: int, tokens: int, seed: int = 0) -> dict[str, int]:
    """The same from the compiled step; arguments are donated, so results that replace them cost nothing more."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from common.models.transformer_jax import TransformerLM
    from papers.qlora import layers_jax as layers

    def build() -> Any:
        model = TransformerLM(a, seed=seed, param_dtype=jnp.bfloat16)
        if variant == "QLoRA":
            layers.quantize(model)
        if variant != "full":
            layers.add_adapters(model, rank, seed=seed, dtype=jnp.bfloat16)
        return model

    # Shapes are all that the compiler needs.
    model = nnx.eval_shape(build)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    moments = jax.tree.map(lambda p: (jax.ShapeDtypeStruct(p.shape, jnp.float32),) * 2, parameters)

    def step(parameters: Any, moments: Any, rest: Any, batch: Any) -> Any:
        def loss(parameters: Any) -> Any:
            logits = nnx.merge(graph, parameters, rest, copy=True)(batch[:, :-1]).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

        def update(p: Any, gradient: Any, pair: Any) -> Any:
            g = gradient.astype(jnp.float32)
            mean, square = 0.9 * pair[0] + 0.1 * g, 0.999 * pair[1] + 0.001 * g * g
            return (p - 1e-4 * mean / (jnp.sqrt(square) + 1e-8)).astype(p.dtype), (mean, square)

        gradients = jax.grad(loss)(parameters)
        new = [update(*each) for each in zip(*map(jax.tree.leaves, (parameters, gradients)), _pairs(moments), strict=True)]
        return [each[0] for each in new], [each[1] for each in new]

    batch = jax.ShapeDtypeStruct((1, tokens + 1), jnp.int32)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(parameters, moments, rest, batch).compile(FAST_COMPILE)
    found = compiled.memory_analysis()
    beyond = found.output_size_in_bytes - found.alias_size_in_bytes
    peak = found.argument_size_in_bytes + found.temp_size_in_bytes + beyond
    return {"peak": int(peak), "held": int(found.argument_size_in_bytes), "temporary": int(found.temp_size_in_bytes)}


def _pairs(moments: Any) -> list[Any]:
    import jax

    leaves = jax.tree.leaves(moments)
    return list(zip(leaves[::2], leaves[1::2], strict=True))


def _keep_dense(model: Any) -> None:
    """Give every 4-bit layer the forward that keeps its dequantised weights for autograd."""
    from papers.qlora.layers_torch import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.forward = lambda x, layer=layer: x @ layer.weight().T.to(x.dtype)
