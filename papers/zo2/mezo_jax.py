"""MeZO with the whole model in memory, one compiled step; twin: ``mezo_torch``. And the decoder cut into units, for both files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from common.architecture import Transformer
from common.models import rotary_table
from common.models.transformer_jax import TransformerLM
from common.models.weights import torch_name
from papers.zo2.kernel import seed_words
from papers.zo2.kernel.jax_impl import normals
from papers.zo2.rule import Rule
from papers.zo2.units import Unit, units

Key = Any
"""Two uint32, the seed as the key of Philox; an array, so that a compiled step takes any seed."""

Buckets = tuple[Array, Array, Array]
"""The first unit, all blocks (block, elements), the tail."""


def noise(unit: Unit, key: Key, base: Any, dtype: Any) -> Float[Array, " elements"]:
    """z of all tensors of a bucket at once, the numbers of :func:`papers.zo2.kernel.gaussian`.

    One expression for the whole bucket compiles in a moment, one for each tensor does not; ``base`` is the number of the
    unit's first parameter and may be traced, so that one program serves all blocks.
    """
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    sizes = [-(-each.count // 4) for each in unit.parameters]
    block = jnp.concatenate([jnp.arange(size, dtype=jnp.uint32) for size in sizes])
    place = jnp.concatenate([jnp.full(size, i, jnp.uint32) for i, size in enumerate(sizes)])
    numbers = jnp.asarray([each.index - unit.parameters[0].index for each in unit.parameters], jnp.uint32)
    z = normals(block, jnp.asarray(base, jnp.uint32) + numbers[place], key, wide).reshape(-1)
    starts = np.cumsum([0, *sizes])
    return jnp.concatenate([z[4 * at : 4 * at + each.count] for at, each in zip(starts, unit.parameters, strict=False)])


def shift(theta: Array, scale: Any, z: Array) -> Array:
    """theta + scale z, in the precision of z, rounded once."""
    return (theta.astype(z.dtype) + jnp.asarray(scale, z.dtype) * z).astype(theta.dtype)


def update(unit: Unit, theta: Array, scale: Any, keep: Any, z: Array) -> Array:
    """keep theta + scale z, where undecayed tensors are kept whole."""
    decays = jnp.concatenate([jnp.full(each.count, each.decays) for each in unit.parameters])
    factor = jnp.where(decays, jnp.asarray(keep, z.dtype), jnp.ones((), z.dtype))
    return (factor * theta.astype(z.dtype) + jnp.asarray(scale, z.dtype) * z).astype(theta.dtype)


def next_token_loss(logits: Float[Array, "batch seq vocabulary"], targets: Int[Array, "batch seq"]) -> Array:
    """Mean cross-entropy, in float32 at least."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(wide, targets).mean()


class Parts:
    """The decoder as functions of flat buckets in torch's layouts, so that both frameworks number the elements alike."""

    def __init__(self, architecture: Transformer, dtype: Any) -> None:
        self.architecture, self.units, self.dtype = architecture, units(architecture), dtype
        small = TransformerLM(dataclasses.replace(architecture, depth=1), param_dtype=dtype)
        self._block, self._block_paths = _split(small.blocks[0])
        self._ends, self._ends_paths = _split(small)
        self._pattern = self.units.blocks[0]

    def first(self, flat: Array, tokens: Int[Array, "batch seq"]) -> Array:
        views = {each.name: view for each, view in self.units.first.views(flat)}
        x = views["embedding.weight"][tokens]
        return x + views["positions.weight"][: tokens.shape[1]] if self.architecture.positions == "learned" else x

    def block(self, flat: Array, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq width"]:
        """Any block: all have the names and shapes of the first."""
        prefix = self._pattern.prefix
        views = {each.name.removeprefix(prefix): view for each, view in self._pattern.views(flat)}
        a, rotary = self.architecture, None
        if a.positions == "rope":
            rotary = jnp.asarray(rotary_table(a.context, a.head_dim)[:, : x.shape[1]], x.dtype)
        return _merge(self._block, self._block_paths, views)(x, rotary, None)[0]

    def tail(self, flat: Array, first: Array, x: Float[Array, "batch seq width"]) -> Float[Array, "batch seq vocabulary"]:
        views = {each.name: view for each, view in (*self.units.tail.views(flat), *self.units.first.views(first))}
        missing = {name: jnp.zeros(shape, self.dtype) for name, (_, shape) in self._ends_paths.items() if name not in views}
        ends = _merge(self._ends, self._ends_paths, views | missing)
        x = ends.norm(x)
        return ends.embedding.attend(x) if self.units.tied else ends.head(x)

    def flat(self, unit: Unit, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        bucket = np.empty(unit.count, np.dtype(self.dtype))
        unit.fill(bucket, weights)
        return bucket


class MeZO:
    """MeZO-SGD on a decoder; a step is two compiled functions, around g on the host.

    Args:
        weights: by torch's names, in torch's layouts.
        dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
    """

    def __init__(
        self, architecture: Transformer, weights: Mapping[str, np.ndarray], rule: Rule, dtype: Any = jnp.float32
    ) -> None:
        self.parts, self.rule = Parts(architecture, dtype), rule
        cut = self.parts.units
        flat = functools.partial(self.parts.flat, weights=weights)
        self.buckets = (jnp.asarray(flat(cut.first)), jnp.stack([flat(each) for each in cut.blocks]), jnp.asarray(flat(cut.tail)))
        # Compiled for each instance: a program that is kept for the class would keep the instance and its weights alive.
        self._losses, self._update = jax.jit(self._losses), jax.jit(self._update)  # type: ignore[method-assign]

    def step(self, batch: Int[Any, "batch length"], seed: int) -> float:
        """One step on a batch, inputs ``[:, :-1]`` and targets ``[:, 1:]``; returns L+."""
        rule, key = self.rule, jnp.asarray(seed_words(seed))
        shifted, plus, minus = self._losses(self.buckets, jnp.asarray(batch), key)
        scale = -rule.rate * rule.gradient(float(plus), float(minus))
        self.buckets = self._update(shifted, key, scale, 1.0 - rule.rate * rule.decay)
        return float(plus)

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of all weights, by name."""
        first, blocks, tail = (np.asarray(each) for each in self.buckets)
        flats = zip(self.parts.units, (first, *blocks, tail), strict=True)
        return {each.name: view for unit, flat in flats for each, view in unit.views(flat)}

    def _losses(self, buckets: Buckets, batch: Array, key: Key) -> tuple[Buckets, Array, Array]:
        """The buckets after + eps and - 2 eps, and both losses."""
        epsilon, drawn = self.rule.epsilon, self._noise(key)
        plus = jax.tree.map(lambda theta, z: shift(theta, epsilon, z), buckets, drawn)
        minus = jax.tree.map(lambda theta, z: shift(theta, -2 * epsilon, z), plus, drawn)
        return minus, self._loss(plus, batch), self._loss(minus, batch)

    def _update(self, buckets: Buckets, key: Key, scale: Array, keep: Array) -> Buckets:
        """Restore, and descend."""
        drawn, cut = self._noise(key), self.parts.units
        first, blocks, tail = jax.tree.map(lambda theta, z: shift(theta, self.rule.epsilon, z), buckets, drawn)
        block = functools.partial(update, cut.blocks[0], scale=scale, keep=keep)
        return (
            update(cut.first, first, scale, keep, drawn[0]),
            jax.vmap(lambda theta, z: block(theta=theta, z=z))(blocks, drawn[1]),
            update(cut.tail, tail, scale, keep, drawn[2]),
        )

    def _noise(self, key: Key) -> Buckets:
        cut, dtype = self.parts.units, self.parts.dtype
        bases = jnp.asarray([each.parameters[0].index for each in cut.blocks], jnp.uint32)
        ends = (noise(unit, key, unit.parameters[0].index, dtype) for unit in (cut.first, cut.tail))
        first, tail = ends
        return first, jax.vmap(lambda base: noise(cut.blocks[0], key, base, dtype))(bases), tail

    def _loss(self, buckets: Buckets, batch: Array) -> Array:
        first, blocks, tail = buckets
        x = self.parts.first(first, batch[:, :-1])
        x, _ = jax.lax.scan(lambda x, flat: (self.parts.block(flat, x), None), x, blocks)
        return next_token_loss(self.parts.tail(tail, first, x), batch[:, 1:])


def _split(module: nnx.Module) -> tuple[Any, dict[str, tuple[Any, tuple[int, ...]]]]:
    """The graph of a module, and by torch's names the paths and shapes of its parameters."""
    graph, state = nnx.split(module)
    return graph, {torch_name(path): (path, leaf[...].shape) for path, leaf in nnx.to_flat_state(state)}


def _merge(graph: Any, paths: Mapping[str, tuple[Any, tuple[int, ...]]], views: Mapping[str, Array]) -> Any:
    leaves = [(path, nnx.Param(views[name].T if path[-1] == "kernel" else views[name])) for name, (path, _) in paths.items()]
    return nnx.merge(graph, nnx.from_flat_state(leaves))
