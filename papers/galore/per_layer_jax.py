"""Updates block by block in JAX: the backward pass is one compiled function for each block, which ends in its update.

The gradients of a block exist only inside that function, and its weights, its optimizer state and the incoming cotangent are
donated, so that the new ones take their place. The twin of :mod:`papers.galore.per_layer`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from common.models import rotary_table
from common.models.transformer_jax import TransformerLM


class BlockWise:
    """Trains a :class:`TransformerLM` whose head is not tied, one block at a time.

    All blocks share one compiled function, so the attention mechanism may not depend on the layer.

    Raises:
        ValueError: a tied head, whose gradient is complete only when the whole backward pass is.
    """

    def __init__(self, model: TransformerLM, optimizer: optax.GradientTransformation) -> None:
        if model.architecture.tied:
            raise ValueError(
                "galore: a tied head gets its gradient from both ends of the model, so it cannot be updated block by block; "
                "take an architecture with tied=False"
            )
        self.model, self.optimizer = model, optimizer
        a = model.architecture
        self.rotary = jnp.asarray(rotary_table(a.context, a.head_dim), model.embedding.embedding[...].dtype)
        ends = nnx.Dict(norm=model.norm, head=model.head)
        pieces = [model.embedding, *model.blocks, ends]
        graphs, self.parameters = zip(*(nnx.split(piece, nnx.Param) for piece in pieces), strict=True)
        self.parameters = list(self.parameters)
        # The blocks differ in the number of their layer alone.
        self.graphs = [graphs[0], *[graphs[1]] * a.depth, graphs[-1]]
        self.states = [optimizer.init(each) for each in self.parameters]

    def step(self, tokens: Int[Array, "batch length"]) -> Float[Array, ""]:
        """One step on next-token prediction; returns the loss before it."""
        tokens, targets = tokens[:, :-1], tokens[:, 1:]
        x = _embedded(self.graphs[0], self.parameters[0], tokens)
        inputs = []
        for graph, parameters in zip(self.graphs[1:-1], self.parameters[1:-1], strict=True):
            inputs.append(x)
            x = _forward(graph, parameters, x, self._rotary(x))
        loss, self.parameters[-1], self.states[-1], cotangent = _last(
            self.graphs[-1], self.optimizer, self.parameters[-1], self.states[-1], x, targets
        )
        for i in range(len(inputs), 0, -1):
            x = inputs.pop()
            self.parameters[i], self.states[i], cotangent = _backward(
                self.graphs[i], self.optimizer, self.parameters[i], self.states[i], x, cotangent, self._rotary(x)
            )
        self.parameters[0], self.states[0] = _first(
            self.graphs[0], self.optimizer, self.parameters[0], self.states[0], tokens, cotangent
        )
        return loss

    def restore(self) -> TransformerLM:
        """Put the trained weights back into the model and return it."""
        pieces = [self.model.embedding, *self.model.blocks, nnx.Dict(norm=self.model.norm, head=self.model.head)]
        for piece, parameters in zip(pieces, self.parameters, strict=True):
            nnx.update(piece, parameters)
        return self.model

    def temporary_bytes(self, tokens: Int[Array, "batch length"]) -> int:
        """The most memory that any of the compiled backward functions needs beside its arguments and results."""
        a = self.model.architecture
        x = jnp.zeros((tokens.shape[0], tokens.shape[1] - 1, a.width), self.rotary.dtype)
        block = _backward.lower(
            self.graphs[1], self.optimizer, self.parameters[1], self.states[1], x, x, self._rotary(x)
        ).compile()
        last = _last.lower(self.graphs[-1], self.optimizer, self.parameters[-1], self.states[-1], x, tokens[:, 1:]).compile()
        analyses: list[Any] = [each.memory_analysis() for each in (block, last)]
        return max(each.temp_size_in_bytes for each in analyses)

    def _rotary(self, x: Array) -> Array:
        return self.rotary[:, : x.shape[1]]


@functools.partial(jax.jit, static_argnums=0)
def _embedded(graph: Any, parameters: Any, tokens: Array) -> Array:
    return nnx.merge(graph, parameters)(tokens)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: Any, parameters: Any, x: Array, rotary: Array) -> Array:
    return _block(graph, parameters, x, rotary)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3, 5))
def _backward(
    graph: Any, optimizer: Any, parameters: Any, state: Any, x: Array, cotangent: Array, rotary: Array
) -> tuple[Any, Any, Array]:
    _, pull = jax.vjp(lambda p, x: _block(graph, p, x, rotary), parameters, x)
    gradients, dx = pull(cotangent)
    updates, state = optimizer.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, dx


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _first(graph: Any, optimizer: Any, parameters: Any, state: Any, tokens: Array, cotangent: Array) -> tuple[Any, Any]:
    _, pull = jax.vjp(lambda p: nnx.merge(graph, p)(tokens), parameters)
    updates, state = optimizer.update(*pull(cotangent), state, parameters)
    return optax.apply_updates(parameters, updates), state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _last(graph: Any, optimizer: Any, parameters: Any, state: Any, x: Array, targets: Array) -> tuple[Array, Any, Any, Array]:
    def loss(parameters: Any, x: Array) -> Array:
        ends = nnx.merge(graph, parameters)
        return _loss(ends["head"](ends["norm"](x)), targets)

    value, (gradients, dx) = jax.value_and_grad(loss, argnums=(0, 1))(parameters, x)
    updates, state = optimizer.update(gradients, state, parameters)
    return value, optax.apply_updates(parameters, updates), state, dx


def _block(graph: Any, parameters: Any, x: Array, rotary: Array) -> Array:
    return nnx.merge(graph, parameters)(x, rotary, None)[0]


def _loss(logits: Array, targets: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
