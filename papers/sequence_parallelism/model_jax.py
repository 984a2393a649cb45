"""The encoder in flax.nnx, with the weights of :mod:`papers.sequence_parallelism.model_torch`, and its loss on a mesh of devices.

A mesh has the axes data, tensor and sequence. Weights lie whole on every device but for those that tensor parallelism or
Linformer share out; the loss of all devices is one function, and JAX finds what its gradient must sum over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from common.models.weights import from_flax, to_flax
from papers.sequence_parallelism.data import IGNORED, Batch
from papers.sequence_parallelism.encoder import Shape, Weights, initial_weights
from papers.sequence_parallelism.ring_jax import linformer_attention, ring_attention

EPSILON = 1e-12
AXES = ("data", "tensor", "sequence")


class Dense(nnx.Module):
    """x W + b; where devices share out the inputs, their products are summed and the bias is added once."""

    def __init__(self, inputs: int, outputs: int, dtype: Any, bias: bool = True) -> None:
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype)) if bias else None

    def __call__(self, x: Array, summed: str | None = None) -> Array:
        x = x @ self.kernel[...]
        x = x if summed is None else jax.lax.psum(x, summed)
        return x if self.bias is None else x + self.bias[...]


class Encoder(nnx.Module):
    """
    Args:
        attend: ``attend(q, k, v)`` over the chunks of all devices.
        sharded: whether it runs on a mesh with the axes of :data:`AXES`.
    """

    def __init__(self, shape: Shape, attend: Callable[..., Array], sharded: bool, dtype: Any = jnp.float64) -> None:
        self.sharded = sharded
        embed = partial(nnx.Embed, features=shape.width, param_dtype=dtype, rngs=nnx.Rngs(0))
        self.tokens, self.positions, self.segments = embed(shape.vocabulary), embed(shape.length), embed(2)
        self.norm = _norm(shape.width, dtype)
        self.blocks = nnx.List([Block(shape, attend, sharded, dtype) for _ in range(shape.depth)])
        self.head = Dense(shape.width, shape.vocabulary, dtype)
        self.pooler, self.order = Dense(shape.width, shape.width, dtype), Dense(shape.width, 2, dtype)

    def __call__(
        self, tokens: Int[Array, "batch chunk"], segments: Int[Array, "batch chunk"]
    ) -> Float[Array, "batch chunk width"]:
        chunk = tokens.shape[1]
        start = jax.lax.axis_index("sequence") * chunk if self.sharded else 0
        positions = jax.lax.dynamic_slice_in_dim(self.positions.embedding[...], start, chunk)
        x = self.norm(self.tokens(tokens) + positions + self.segments(segments))
        for block in self.blocks:
            x = block(x)
        return x

    def losses(self, batch: tuple[Array, ...], asked: Any, rows: Any) -> Float[Array, " losses"]:
        """Token loss and order loss: this device's shares, or without a mesh the whole."""
        tokens, labels, segments, order = batch
        x = self(tokens, segments)
        picked = _picked(self.head(x), jnp.maximum(labels, 0))
        told = -jnp.where(labels == IGNORED, 0, picked).sum() / asked
        first = -_picked(self.order(jnp.tanh(self.pooler(x[:, 0]))), order).sum() / rows
        if self.sharded:
            first = jnp.where(jax.lax.axis_index("sequence") == 0, first, 0)
        return jnp.stack([told, first])


class Block(nnx.Module):
    """x = norm(x + attention(x)); x = norm(x + down(gelu(up(x))))."""

    def __init__(self, shape: Shape, attend: Callable[..., Array], sharded: bool, dtype: Any) -> None:
        self.attention = Attention(shape, attend, sharded, dtype)
        self.attention_norm = _norm(shape.width, dtype)
        self.feed_forward = FeedForward(shape.width, sharded, dtype)
        self.feed_forward_norm = _norm(shape.width, dtype)

    def __call__(self, x: Array) -> Array:
        x = self.attention_norm(x + self.attention(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


class Attention(nnx.Module):
    def __init__(self, shape: Shape, attend: Callable[..., Array], sharded: bool, dtype: Any) -> None:
        self.attend, self.sharded, self.dim, width = attend, sharded, shape.width // shape.heads, shape.width
        self.query, self.key = Dense(width, width, dtype), Dense(width, width, dtype, bias=False)
        self.value, self.output = Dense(width, width, dtype), Dense(width, width, dtype)
        self.rows = shape.rows
        if shape.rows:
            self.key_columns = nnx.Param(jnp.zeros((shape.rows, shape.length), dtype))
            self.value_columns = nnx.Param(jnp.zeros((shape.rows, shape.length), dtype))

    def __call__(self, x: Array) -> Array:
        q, k, v = (
            rearrange(project(x), "batch seq (head dim) -> batch head seq dim", dim=self.dim)
            for project in (self.query, self.key, self.value)
        )
        if self.rows:
            columns = self.key_columns[...], self.value_columns[...]
            o = linformer_attention(q, k, v, *columns, "sequence" if self.sharded else None)
        else:
            o = self.attend(q, k, v)
        return self.output(rearrange(o, "batch head seq dim -> batch seq (head dim)"), "tensor" if self.sharded else None)


class FeedForward(nnx.Module):
    def __init__(self, width: int, sharded: bool, dtype: Any) -> None:
        self.sharded = sharded
        self.up, self.down = Dense(width, 4 * width, dtype), Dense(4 * width, width, dtype)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False), "tensor" if self.sharded else None)


def mesh(data: int = 1, tensor: int = 1, sequence: int = 1) -> Mesh:
    """Devices in a grid.

    Raises:
        ValueError: JAX sees fewer than the product.
    """
    wanted, there = data * tensor * sequence, len(jax.devices())
    if wanted > there:
        raise ValueError(f"a mesh data={data} x tensor={tensor} x sequence={sequence} has {wanted} devices, and JAX sees {there}")
    return jax.make_mesh((data, tensor, sequence), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:wanted])


class Trainer:
    """The encoder's weights on a mesh, and compiled steps of Adam.

    Args:
        attend: ``attend(q, k, v)`` on the chunk of a device; by default the ring over the axis sequence.
    """

    def __init__(
        self, shape: Shape, grid: Mesh, attend: Callable[..., Array] | None = None, rate: float = 1e-3, seed: int = 0
    ) -> None:
        attend = attend or partial(ring_attention, axis="sequence")
        self.model = Encoder(shape, attend, sharded=True)
        to_flax(self.model, initial_weights(shape, seed))
        self.graph, state = nnx.split(self.model)
        specs = jax.tree_util.tree_map_with_path(lambda path, _: _spec(path), state)
        self.state = jax.device_put(state, jax.tree.map(lambda spec: NamedSharding(grid, spec), specs))
        self.optimizer = optax.adam(rate)
        everywhere = NamedSharding(grid, PartitionSpec())
        moments = self.optimizer.init(self.state)
        # Adam's count would start on one device, and the second step would be compiled anew.
        self.moments = jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, everywhere), moments)
        lie = jax.tree.map(lambda x: x.sharding, (self.state, self.moments))
        tokens = PartitionSpec("data", "sequence")
        arrays = (tokens, tokens, tokens, PartitionSpec("data"))

        @partial(jax.shard_map, mesh=grid, in_specs=(specs, arrays, PartitionSpec()), out_specs=PartitionSpec())
        def losses(state: Any, batch: tuple[Array, ...], counts: tuple[Array, Array]) -> Array:
            return jax.lax.psum(nnx.merge(self.graph, state).losses(batch, *counts), ("data", "sequence"))

        def total(state: Any, batch: Any, counts: Any) -> tuple[Array, Array]:
            both = losses(state, batch, counts)
            return both.sum(), both

        @partial(
            jax.jit,
            compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
            out_shardings=(*lie, everywhere, lie[0]),
        )
        def step(state: Any, moments: Any, batch: Any, counts: Any) -> Any:
            (_, both), gradients = jax.value_and_grad(total, has_aux=True)(state, batch, counts)
            updates, moments = self.optimizer.update(gradients, moments, state)
            return optax.apply_updates(state, updates), moments, both, gradients

        self._step = step

    def step(self, batch: Batch) -> tuple[Float[np.ndarray, " losses"], Weights]:
        """Both losses of the whole batch and the gradients, before the weights move."""
        arrays = tuple(jnp.asarray(each) for each in batch[:4])
        counts = jnp.asarray(batch.asked), jnp.asarray(batch.rows)
        self.state, self.moments, both, gradients = self._step(self.state, self.moments, arrays, counts)
        return np.asarray(both), self._arrays(gradients)

    def weights(self) -> Weights:
        return self._arrays(self.state)

    def _arrays(self, state: Any) -> Weights:
        return from_flax(nnx.merge(self.graph, state))


def _spec(path: Any) -> PartitionSpec:
    """How a weight lies on the mesh, by its place in the model: heads and hidden features along tensor, Linformer's columns
    along sequence."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    # Behind the parameter's own name may stand that of the array in it.
    layer, leaf = names[-3:-1] if names[-1] == "value" else names[-2:]
    if leaf.endswith("_columns"):
        return PartitionSpec(None, "sequence")
    if layer in ("query", "key", "value", "up"):
        return PartitionSpec(None, "tensor") if leaf == "kernel" else PartitionSpec("tensor")
    if layer in ("output", "down") and leaf == "kernel":
        return PartitionSpec("tensor", None)
    return PartitionSpec()


def _norm(width: int, dtype: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=EPSILON, param_dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))


def _picked(logits: Array, index: Array) -> Array:
    """Logarithms of the probabilities of the tokens at index."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), index[..., None], axis=-1)[..., 0]
