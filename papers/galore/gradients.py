"""Peak bytes of gradients when every layer is updated at once, measured in both frameworks."""

from __future__ import annotations

from typing import Any

from common.architecture import Transformer

SHAPE = Transformer(width=256, depth=3, heads=4, kv_heads=4, head_dim=64, hidden=688, context=8, vocabulary=64, tied=False)
"""Matrices much larger than activations: a sequence has eight tokens."""


def peaks_torch(per_layer: bool, rank: int = 64) -> dict[str, float]:
    """{"gradients": peak of live gradients over the largest matrix, "step": of all bytes beside weights and states}."""
    import torch

    from common.allocations import Allocations
    from common.models.transformer_torch import TransformerLM
    from common.training.torch_loop import next_token_loss
    from papers.galore.memory import make, state_tensors
    from papers.galore.per_layer import LiveGradients, update_each_layer

    model = TransformerLM(SHAPE, seed=0)
    parameters = dict(model.named_parameters())
    optimizer = make("galore", parameters, {"rank": rank}, lr=1e-3)
    tokens = torch.arange(9)[None]
    next_token_loss(model, tokens).backward()
    optimizer.step()
    optimizer.zero_grad()
    live = LiveGradients(list(parameters.values()))
    if per_layer:
        update_each_layer(optimizer)
    with Allocations(*parameters.values(), *state_tensors(optimizer)) as counted:
        before = counted.live
        loss = next_token_loss(model, tokens)
        loss.backward()
        optimizer.step()
    largest = max(each.numel() * each.element_size() for each in parameters.values())
    return {"gradients": live.peak / largest, "step": (counted.peak - before) / largest}


def peaks_jax(rank: int = 64, update: bool = True) -> dict[str, float]:
    """Bytes that the compiled functions of a step need beside arguments and results, over those of one block's gradients.

    "gradients" is with plain descent as the update, so that gradients and activations are all there is; "step", left out
    without ``update``, is with GaLore.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from common.models.transformer_jax import TransformerLM
    from papers.galore import optimizer_jax
    from papers.galore.per_layer_jax import BlockWise

    model, tokens = TransformerLM(SHAPE, seed=0), jnp.arange(9)[None]

    def size(part: Any) -> int:
        return sum(each.nbytes for each in jax.tree.leaves(nnx.state(part, nnx.Param)))

    block = size(model.blocks[0])
    ways: dict[str, Any] = {"gradients": optax.sgd(1e-3)}
    if update:
        ways["step"] = optimizer_jax.adamw(1e-3, rank, transposed=True)
    found = {name: BlockWise(model, way).temporary_bytes(tokens) / block for name, way in ways.items()}
    return {**found, "gradients of the whole model": size(model) / block}
