"""ZeRO stage 3 in JAX: one mesh axis, weights in slices, an all-gather before use, a reduce-scatter of the gradient.

The model is an unchanged nnx module. Within ``shard_map`` each parameter is gathered from the slices of all devices where it
is used; a rematerialisation policy forbids keeping what was gathered, so that the backward pass gathers again. The transpose
of the gather is ``psum_scatter``: each device gets the slice of the summed gradient that belongs to its own. States of the
optimizer live in the memory kind ``pinned_host`` and visit the device one parameter at a time.

Run it where JAX sees several devices, such as in :func:`common.distributed.on_devices`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.adam_chunk import adam_chunk
from papers.zero_infinity.rule import Adam

AXIS = "ranks"


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gathered(part: jax.Array, shape: tuple[int, ...], reduce: bool = True) -> jax.Array:
    """The whole tensor from this device's slice and those of the others; backward, the slice of the gradients' mean."""
    whole = jax.lax.all_gather(part, AXIS, tiled=True)
    return whole[: math.prod(shape)].reshape(shape)


def _gathered_forward(part: jax.Array, shape: tuple[int, ...], reduce: bool) -> tuple[jax.Array, None]:
    return gathered(part, shape, reduce), None


def _gathered_backward(shape: tuple[int, ...], reduce: bool, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    ranks = jax.lax.axis_size(AXIS)
    padded = _padded(gradient, ranks)
    if not reduce:
        return (padded.reshape(ranks, -1)[jax.lax.axis_index(AXIS)],)
    return (jax.lax.psum_scatter(padded, AXIS, tiled=True) / ranks,)


gathered.defvjp(_gathered_forward, _gathered_backward)


class ZeRO3:
    """A training over all devices of this process.

    Args:
        model: an nnx module; only its structure and its weights are used.
        loss: ``loss(model, batch)`` in the model's framework.
        reduce: False leaves each device its own gradient, a fault for controls.
    """

    def __init__(self, model: nnx.Module, loss: Callable[[Any, Any], jax.Array], adam: Adam, reduce: bool = True) -> None:
        devices = jax.devices()
        self.ranks, self.adam, self.steps = len(devices), adam, 0
        mesh = jax.make_mesh((self.ranks,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
        self.device = NamedSharding(mesh, P(AXIS))
        self.host = self.device.with_memory_kind("pinned_host")
        split: Any = nnx.split(model, nnx.Param, ...)
        self._graph, state, self._rest = split
        leaves, self._tree = jax.tree.flatten(state)
        self.shapes = [leaf.shape for leaf in leaves]
        self.parts = [jax.device_put(_padded(leaf, self.ranks), self.device) for leaf in leaves]
        self.states = [tuple(jax.device_put(jnp.zeros_like(part), self.host) for _ in range(2)) for part in self.parts]

        def local_loss(parts: list[jax.Array], batch: jax.Array) -> jax.Array:
            whole = [gathered(part, shape, reduce) for part, shape in zip(parts, self.shapes, strict=True)]
            return loss(self._model(whole), batch)

        def local_step(parts: list[jax.Array], batch: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            # Products are kept for the backward pass, and nothing else: no weight is a product.
            lean = jax.checkpoint(local_loss, policy=jax.checkpoint_policies.dots_saveable)
            value, gradients = jax.value_and_grad(lean)(parts, batch)
            return jax.lax.pmean(value, AXIS), gradients

        self._gradients: Any = jax.jit(
            jax.shard_map(local_step, mesh=mesh, in_specs=(P(AXIS), P(AXIS)), out_specs=(P(), P(AXIS)), check_vma=False)
        )
        self._compiled: Any = None
        self._text = ""
        self._update = jax.jit(self._adam)

    def step(self, batch: np.ndarray) -> float:
        """One step on a batch whose rows the devices share; returns the mean loss before it."""
        rows = jax.device_put(jnp.asarray(batch), self.device)
        if self._compiled is None:
            lowered = self._gradients.lower(self.parts, rows)
            self._text, self._compiled = lowered.as_text(), lowered.compile()
        value, gradients = self._compiled(self.parts, rows)
        self.steps += 1
        for i, gradient in enumerate(gradients):
            mean, square = (jax.device_put(each, self.device) for each in self.states[i])
            self.parts[i], mean, square = self._update(self.parts[i], gradient, mean, square, jnp.int32(self.steps))
            self.states[i] = jax.device_put(mean, self.host), jax.device_put(square, self.host)
        return float(value)

    def weights(self) -> dict[str, np.ndarray]:
        """All weights, under torch's names and in torch's layouts."""
        from common.models.weights import from_flax

        pairs = zip(self.parts, self.shapes, strict=True)
        return from_flax(self._model([jnp.asarray(np.asarray(part)[: math.prod(shape)].reshape(shape)) for part, shape in pairs]))

    def collectives(self) -> dict[str, int]:
        """How many of each kind the step asks for. XLA's CPU compiler merges the second gather with the first; others do not."""
        return {name: self._text.count(f'"stablehlo.{name}"') for name in ("all_gather", "reduce_scatter")}

    def _model(self, leaves: list[jax.Array]) -> Any:
        return nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves), self._rest)

    def _adam(self, part: Any, gradient: Any, mean: Any, square: Any, step: Any) -> tuple[Any, Any, Any]:
        a = self.adam
        return adam_chunk(
            part, gradient, mean, square, step=step, learning_rate=a.rate, beta1=a.first, beta2=a.second, epsilon=a.epsilon,
            weight_decay=a.decay, backend="jax",
        )  # fmt: skip


def _padded(leaf: jax.Array, ranks: int) -> jax.Array:
    flat = leaf.reshape(-1)
    return jnp.pad(flat, (0, -len(flat) % ranks))


def train(architecture: Any, batches: Any, adam: Adam, seed: int, dtype: str, reduce: bool = True) -> dict[str, Any]:
    """What :func:`papers.zero_infinity.trainings.train` does, by this twin; for :func:`common.distributed.on_devices`."""
    from common.models.transformer_jax import TransformerLM
    from common.training.jax_loop import next_token_loss

    with jax.enable_x64(dtype == "float64"):
        model = TransformerLM(architecture, seed=seed, param_dtype=jnp.dtype(dtype))
        engine = ZeRO3(model, next_token_loss, adam, reduce)
        losses = [engine.step(batch) for batch in batches]
        return {
            "losses": losses,
            "weights": engine.weights(),
            "parameters": len(engine.parts),
            "collectives": engine.collectives(),
            "kinds": sorted({each.sharding.memory_kind for pair in engine.states for each in pair}),
        }
