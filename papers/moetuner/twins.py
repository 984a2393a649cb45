"""The layer alone, in both frameworks and dense: output and gradients on the same numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from common.agreement import relative_error
from common.distributed import Group, Ranks, on_devices
from papers.moetuner.traffic import Flow

RANKS, EXPERTS, ACTIVE = 4, 8, 2
LEAVES = ("x", "router", "gate", "up", "down")
Weights = dict[str, Any]


def inputs(rng: np.random.Generator, tokens: int = 48, width: int = 12, hidden: int = 20) -> Weights:
    """Input, router, experts and a cotangent."""
    shapes = {
        "x": (tokens, width),
        "router": (width, EXPERTS),
        "gate": (EXPERTS, width, hidden),
        "up": (EXPERTS, width, hidden),
        "down": (EXPERTS, hidden, width),
        "cotangent": (tokens, width),
    }
    return {name: rng.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 2 else 1) for name, shape in shapes.items()}


def duality(ranks: Ranks, place: Int[np.ndarray, " expert"], bits: int, rng: np.random.Generator) -> float:
    """Largest relative difference of output and gradients of ranks and mesh from the dense layer's; JAX with numbers of so many bits."""
    given = inputs(rng)
    alone = dense(given)
    return max(
        relative_error(one[name], alone[name])
        for one in (ranked(ranks, given, place), on_devices(_meshed, RANKS, given, place, bits))
        for name in alone
    )


def ranked(ranks: Ranks, given: Weights, place: Int[np.ndarray, " expert"]) -> Weights:
    """Output and gradients over ranks; each has its part of the sum over tokens."""
    parts = ranks.run(_ranked, given, place)
    joined = {name: np.concatenate([each[name] for each in parts]) for name in ("out", "x")}
    return joined | {name: sum(each[name] for each in parts) for name in LEAVES[1:]}


def logits_jax(
    name: str,
    text: UInt8[np.ndarray, "sequence length"],
    places: Int[np.ndarray, "way layer expert"],
    kept: Int[np.ndarray, "way layer expert"],
) -> Float[np.ndarray, "way token vocabulary"]:
    """Logits of the zoo's mixture in float64 over a mesh, for several placements; ``kept``: where the weights are."""
    return on_devices(_logits, RANKS, name, text, places, kept)


def dense(given: Weights) -> Weights:
    """Output and gradients of the mixture of :mod:`common.models.transformer_torch` on one device, in float64."""
    import torch

    from common.architecture import Transformer
    from common.models.transformer_torch import Mixture

    width, hidden = given["gate"].shape[1:]
    one = Transformer(
        width=width, depth=1, heads=1, kv_heads=1, head_dim=width, hidden=hidden, context=1, experts=EXPERTS, active=ACTIVE
    )
    mix = Mixture(one, lambda inputs, outputs: torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.float64))
    weights = {"router": [mix.router.weight]} | {
        name: [getattr(each, name).weight for each in mix.experts] for name in LEAVES[2:]
    }
    with torch.no_grad():
        for name, those in weights.items():
            for weight, value in zip(those, given[name] if len(those) > 1 else [given[name]], strict=True):
                weight.copy_(torch.from_numpy(value.T))
    x = torch.from_numpy(given["x"]).requires_grad_()
    out = mix(x[None])[0]
    found = torch.autograd.grad(
        out,
        [x, *(each for those in weights.values() for each in those)],
        torch.from_numpy(given["cotangent"]),
        materialize_grads=True,
    )
    router, experts = found[1].T.numpy(), [each.T.numpy() for each in found[2:]]
    stacked = {name: np.stack(experts[place * EXPERTS : (place + 1) * EXPERTS]) for place, name in enumerate(LEAVES[2:])}
    return {"out": out.detach().numpy(), "x": found[0].numpy(), "router": router, **stacked}


def _ranked(group: Group, given: Weights, place: np.ndarray) -> Weights:
    """This rank's tokens; gradients of weights are its own part of the sum."""
    import torch
    import torch.nn.functional as F

    from papers.moetuner import layer_torch

    mine = np.array_split(np.arange(len(given["x"])), group.size)[group.rank]
    leaves = {name: torch.from_numpy(each).requires_grad_() for name, each in given.items() if name != "cotangent"}
    x = leaves["x"][mine]
    experts = {
        int(e): lambda x, e=e: (F.silu(x @ leaves["gate"][e]) * (x @ leaves["up"][e])) @ leaves["down"][e]
        for e in np.nonzero(place == group.rank)[0]
    }
    state, _ = layer_torch.mixture(
        group,
        layer_torch.State(x, torch.from_numpy(mine)),
        lambda x: x,
        lambda x: x @ leaves["router"],
        experts,
        torch.from_numpy(place),
        ACTIVE,
        Flow.fixed,
    )
    out = state.x - x
    out.backward(torch.from_numpy(given["cotangent"])[mine])
    gradients = {name: each.grad.numpy() if each.grad is not None else np.zeros(each.shape) for name, each in leaves.items()}
    return gradients | {"x": gradients["x"][mine], "out": out.detach().numpy()}


def _meshed(given: Weights, place: np.ndarray, bits: int) -> Weights:
    import jax
    import jax.numpy as jnp

    from papers.moetuner import layer_jax

    mesh = layer_jax.mesh(RANKS)

    @jax.jit
    def both(leaves: list[Any], cotangent: Any) -> tuple[Any, Any]:
        def parallel(x: Any, router: Any, *experts: Any) -> Any:
            return layer_jax.mixture(mesh, x, router, layer_jax.Experts(*experts), layer_jax.layout(place, RANKS), ACTIVE)

        out, pull = jax.vjp(parallel, *leaves)
        return out, pull(cotangent)

    with jax.enable_x64(bits == 64):
        out, gradients = both([jnp.asarray(given[name]) for name in LEAVES], jnp.asarray(given["cotangent"]))
        return {name: np.asarray(each) for name, each in zip(("out", *LEAVES), (out, *gradients), strict=True)}


def _logits(name: str, text: np.ndarray, places: np.ndarray, kept: np.ndarray) -> np.ndarray:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    from common import zoo
    from common.models import rotary_table
    from papers.moetuner import layer_jax

    mesh = layer_jax.mesh(RANKS)
    layouts = layer_jax.layout(places, RANKS, kept)

    replicated = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, static_argnums=0)
    def through(kind: Any, weights: Any, x: Any, rotary: Any) -> Any:
        return jax.lax.with_sharding_constraint(nnx.merge(kind, weights)(x, rotary, None)[0], replicated)

    found = []
    with jax.enable_x64(True):
        model = zoo.load(name).jax(param_dtype=jnp.float64)
        rotary = jnp.asarray(rotary_table(text.shape[1], model.architecture.head_dim))
        start = jax.device_put(model.embedding(jnp.asarray(text, jnp.int32)), replicated)
        mixtures = [block.feed_forward for block in model.blocks]
        for way in range(len(places)):
            x = start
            for layer, (block, mix) in enumerate(zip(model.blocks, mixtures, strict=True)):
                block.attention.layer = 0  # blocks that are alike are compiled once
                block.feed_forward = layer_jax.Parallel(mix, mesh, layer_jax.Layout(*(each[way, layer] for each in layouts)))
                x = through(*nnx.split(block), x, rotary)
            out = np.asarray(model.embedding.attend(model.norm(x)))
            found.append(out.reshape(-1, out.shape[-1]))
    return np.stack(found)
