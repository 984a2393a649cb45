"""The same GPT as one program on a mesh (dp, pp, tp): tensors by psum, the pipeline by ppermute in a scan, data by psum.

Every device does one virtual step of its pipeline in each turn of the scan, and all pass their result on to the next device, the
last one to the first: with v chunks a microbatch goes round v times. Microbatches enter in groups of p, so what a device needs
is always what it was just sent. Differentiation turns the scan round, so the order of the backward passes is fixed, all behind
all forward ones; the claims about the memory of schedules are checked on the PyTorch side alone.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from papers.megatron_lm.layers_jax import column, copy_to, cross_entropy, embed, row
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape, axis_of, decays

Params = dict[str, Any]
_BLOCK = "blocks."


def loss_and_gradients(
    shape: Shape, layout: Layout, weights: dict[str, np.ndarray], tokens: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss of a batch and its whole gradients, on a mesh of t p d devices, in float64."""
    with jax.enable_x64(True):
        mesh = Mesh(shape, layout, weights)
        loss, found = mesh.differentiate(mesh.params, tokens)
        return float(loss), unstack(shape, found)


def train(
    shape: Shape,
    layout: Layout,
    weights: dict[str, np.ndarray],
    batches: list[np.ndarray],
    rate: float,
    decay: float,
    clip: float,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Steps of AdamW on a mesh, in float64: the loss of each batch before its step, and the weights behind the last."""
    import optax

    with jax.enable_x64(True):
        mesh = Mesh(shape, layout, weights)
        optimizer = optax.adamw(rate, 0.9, 0.95, 1e-8, weight_decay=decay, mask={name: decays(name) for name in mesh.params})

        @jax.jit
        def update(params: Params, state: Any, found: Params, length: Array) -> tuple[Params, Any]:
            found = jax.tree.map(lambda each: each * jnp.minimum(clip / (length + 1e-6), 1.0), found)
            change, state = optimizer.update(found, state, params)
            return optax.apply_updates(params, change), state

        params, losses = mesh.params, []
        state = optimizer.init(params)
        for tokens in batches:
            loss, found = mesh.differentiate(params, tokens)
            params, state = update(params, state, found, mesh.norm(found))
            losses.append(float(loss))
        return losses, unstack(shape, params)


class Mesh:
    """The weights on their devices, and what a step needs. ``params`` are laid out as :func:`stack` says."""

    def __init__(self, shape: Shape, layout: Layout, weights: dict[str, np.ndarray]) -> None:
        layout.check(shape)
        self.layout = layout
        mesh = jax.make_mesh((layout.data, layout.pipeline, layout.tensor), ("dp", "pp", "tp"), axis_types=(AxisType.Auto,) * 3)
        stacked = stack(shape, layout, weights)
        specs = {name: _spec(name) for name in stacked}
        self.params = {name: jax.device_put(value, NamedSharding(mesh, specs[name])) for name, value in stacked.items()}
        partly = partial(jax.shard_map, mesh=mesh, check_vma=False)
        self.norm = jax.jit(partly(_norm, in_specs=(specs,), out_specs=P()))
        # On a CPU a few steps are cheaper than the compiler's last optimisations.
        quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        self._differentiate = jax.jit(
            partly(partial(gradients, shape, layout), in_specs=(specs, P("dp")), out_specs=(P(), specs)),
            compiler_options=quick if jax.default_backend() == "cpu" else None,
        )

    def differentiate(self, params: Params, tokens: np.ndarray) -> tuple[Array, Params]:
        """Loss and gradients of a global batch."""
        self.layout.microbatches(len(tokens))
        return self._differentiate(params, jnp.asarray(tokens))


def gradients(
    shape: Shape, layout: Layout, params: Params, tokens: Int[Array, "batch window"]
) -> tuple[Float[Array, ""], Params]:
    """Mean loss and its gradient, as one device of the mesh computes them from its shards and its replica's sequences."""
    microbatches = rearrange(tokens, "(m b) seq -> m b seq", b=layout.microbatch)
    loss, found = jax.value_and_grad(partial(_loss, shape, layout))(params, microbatches)

    def whole(name: str, gradient: Array) -> Array:
        # What all stages hold is used by some: the embedding by the first and the last, whose gradients are summed.
        gradient = gradient if name.startswith(_BLOCK) else lax.psum(gradient, "pp")
        return lax.pmean(gradient, "dp")

    return lax.pmean(lax.psum(loss, "pp"), "dp"), {name: whole(name, each) for name, each in found.items()}


def _loss(shape: Shape, layout: Layout, params: Params, tokens: Int[Array, "m batch window"]) -> Float[Array, ""]:
    """The loss on the devices of the last stage, 0 on the others."""
    p, v, m = layout.pipeline, layout.chunks, tokens.shape[0]
    rank = lax.axis_index("pp")
    inputs = embed(tokens[..., :-1], params["embedding.weight"], "tp") + params["positions.weight"][: tokens.shape[-1] - 1]
    blocks = {name: each[:, 0] for name, each in params.items() if name.startswith(_BLOCK)}

    def turn(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, outputs = carry
        k = i - rank
        step = jnp.clip(k, 0, m * v - 1)
        chunk, microbatch = step % (p * v) // p, p * (step // (p * v)) + step % p
        x = jnp.where((rank == 0) & (chunk == 0), inputs[microbatch], x)
        layers = {name.removeprefix(_BLOCK): each[chunk] for name, each in blocks.items()}
        x, _ = lax.scan(lambda x, layer: (_block(shape, x, layer), None), x, layers)
        done = (rank == p - 1) & (chunk == v - 1) & (k == step)
        outputs = outputs.at[microbatch].set(jnp.where(done, x, outputs[microbatch]))
        return (lax.ppermute(x, "pp", [(j, (j + 1) % p) for j in range(p)]), outputs), None

    empty = jnp.zeros_like(inputs)
    (_, outputs), _ = lax.scan(turn, (empty[0], empty), jnp.arange(m * v + p - 1))
    normed = _layer_norm(outputs, params["norm.weight"], params["norm.bias"])
    logits = copy_to(normed, "tp") @ params["embedding.weight"].T
    losses = cross_entropy(logits, tokens[..., 1:], shape.vocabulary, "tp")
    return jnp.where(rank == p - 1, losses.mean(), 0.0)


def _block(shape: Shape, x: Float[Array, "batch seq width"], w: Params) -> Float[Array, "batch seq width"]:
    def part(name: str) -> Params:
        return {kind: w[f"{name}.{kind}"] for kind in ("weight", "bias")}

    y = copy_to(_layer_norm(x, **part("attention_norm")), "tp")
    dim = shape.width // shape.heads
    q, k, v = rearrange(column(y, part("attention.qkv")), "b seq part (head dim) -> part b head seq dim", dim=dim)
    scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), q @ k.mT / math.sqrt(dim), -jnp.inf)
    mixed = rearrange(jax.nn.softmax(scores, -1) @ v, "b head seq dim -> b seq (head dim)")
    x = x + row(mixed, part("attention.output"), "tp")
    y = copy_to(_layer_norm(x, **part("feed_forward_norm")), "tp")
    hidden = jax.nn.gelu(column(y, part("feed_forward.up")), approximate=False)
    return x + row(hidden, part("feed_forward.down"), "tp")


def _layer_norm(x: Float[Array, "*place width"], weight: Array, bias: Array) -> Float[Array, "*place width"]:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * weight + bias


def _norm(found: Params) -> Float[Array, ""]:
    """Of the whole gradient: what several devices hold counts once."""
    total = jnp.zeros(())
    for name, gradient in found.items():
        axes = [axis for axis, several in (("pp", name.startswith(_BLOCK)), ("tp", _tensor_axis(name) is not None)) if several]
        square = jnp.square(gradient).sum()
        total += lax.psum(square, tuple(axes)) if axes else square
    return jnp.sqrt(total)


def stack(shape: Shape, layout: Layout, weights: dict[str, np.ndarray]) -> Params:
    """Whole weights with the layers of each kind as one array [chunk, rank, layer of the stage, ...], the vocabulary padded."""
    rows = shape.padded(layout.tensor) - shape.vocabulary
    found = {name: each for name, each in weights.items() if not name.startswith(_BLOCK)}
    found["embedding.weight"] = np.pad(weights["embedding.weight"], ((0, rows), (0, 0)))
    for name in (name.removeprefix("blocks.0.") for name in weights if name.startswith("blocks.0.")):
        layers = np.stack([weights[f"blocks.{layer}.{name}"] for layer in range(shape.depth)])
        found[_BLOCK + name] = rearrange(layers, "(v p each) ... -> v p each ...", v=layout.chunks, p=layout.pipeline)
    return found


def unstack(shape: Shape, params: Params) -> dict[str, np.ndarray]:
    """The inverse of :func:`stack`."""
    found = {}
    for name, each in params.items():
        if not name.startswith(_BLOCK):
            found[name] = np.asarray(each)[: shape.vocabulary] if name == "embedding.weight" else np.asarray(each)
            continue
        layers = rearrange(np.asarray(each), "v p each ... -> (v p each) ...")
        found |= {f"blocks.{i}.{name.removeprefix(_BLOCK)}": layer for i, layer in enumerate(layers)}
    return found


def _tensor_axis(name: str) -> int | None:
    return axis_of(name.replace(_BLOCK, "blocks.0."))


def _spec(name: str) -> P:
    """Where the axes of a stacked parameter lie on the mesh."""
    axis = _tensor_axis(name)
    inner = [] if axis is None else [None] * axis + ["tp"]
    return P(None, "pp", None, *inner) if name.startswith(_BLOCK) else P(*inner)
