"""Weight and architecture steps of the search in JAX, each one compiled function for all draws of the gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from papers.proxyless_nas.cost import Cost
from papers.proxyless_nas.gates import Gates, rescale
from papers.proxyless_nas.mixed_jax import probabilities
from papers.proxyless_nas.objective import BETAS, MOMENTUM, SMOOTHING, WEIGHT_DECAY, Objective
from papers.proxyless_nas.space import ZERO
from papers.proxyless_nas.supernet_jax import SuperNet


class Adam(NamedTuple):
    """Architecture parameters of one place with what Adam has gathered; its step counts the updates of this place alone."""

    alpha: Array
    mean: Array
    square: Array
    step: Array


class Search:
    """The search of :class:`papers.proxyless_nas.search.Search`, with the gates given from outside.

    Args:
        masked: False, a control, lets momentum and weight decay move the weights of inactive candidates.
        compiler: options of XLA.
    """

    def __init__(
        self, model: SuperNet, space: Any, alphas: Sequence[np.ndarray], objective: Objective, cost: Cost, alpha_rate: float,
        masked: bool = True, compiler: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        model.train()
        self.space, self.objective, self.cost, self.alpha_rate, self.masked = space, objective, cost, alpha_rate, masked
        self.graph, self.weights, self.rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        self.momenta = jax.tree.map(jnp.zeros_like, self.weights)
        self._step_weights = jax.jit(self._weight_step, compiler_options=compiler)
        self._step_alphas = jax.jit(self._architecture_step, static_argnames="mode", compiler_options=compiler)
        dtype = jax.tree.leaves(self.weights)[0].dtype
        self.adam = [Adam(jnp.asarray(a, dtype), *jnp.zeros((2, len(a)), dtype), jnp.zeros((), dtype)) for a in alphas]

    def weight_step(self, images: np.ndarray, labels: np.ndarray, gates: Sequence[Gates], rate: float) -> None:
        """SGD with Nesterov momentum and weight decay on what the active candidates use; nothing else moves."""
        active, involved = _arrays(gates, self.space)
        alphas = [each.alpha for each in self.adam]
        self.weights, self.momenta = self._step_weights(
            self.weights, self.momenta, alphas, images, labels, active, involved, rate
        )

    def architecture_step(self, images: np.ndarray, labels: np.ndarray, gates: Sequence[Gates], mode: str) -> None:
        """Adam on the architecture parameters of every place whose active candidate is not Zero."""
        active, involved = _arrays(gates, self.space)
        before = self.adam
        self.adam = self._step_alphas(before, self.weights, images, labels, active, involved, mode=mode)
        if mode == "two":
            for i, (old, new, gate) in enumerate(zip(before, self.adam, gates, strict=True)):
                shifted = rescale(np.asarray(old.alpha), np.asarray(new.alpha), gate)
                self.adam[i] = new._replace(alpha=jnp.asarray(shifted, new.alpha.dtype))

    def _logits(self, weights: Any, alphas: Any, images: Array, active: Array, involved: Any, mode: str) -> Array:
        return nnx.merge(self.graph, weights, self.rest, copy=True)(images, active, involved, alphas, mode)

    def _weight_step(
        self, weights: Any, momenta: Any, alphas: Any, images: Array, labels: Array, active: Array, involved: Any, rate: Array
    ) -> Any:
        def loss(weights: Any) -> Array:
            logits = self._logits(weights, alphas, images, active, involved, "path")
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), SMOOTHING)
            return optax.softmax_cross_entropy(logits, targets).mean()

        def update(path: Any, w: Array, g: Array, buffer: Array) -> tuple[Array, Array]:
            runs = _runs(path, active) if self.masked else jnp.asarray(True)
            g = g + WEIGHT_DECAY * w
            moved = MOMENTUM * buffer + g
            return jnp.where(runs, w - rate * (g + MOMENTUM * moved), w), jnp.where(runs, moved, buffer)

        gradients = jax.grad(loss)(weights)
        both = jax.tree.map_with_path(update, weights, gradients, momenta)
        pairs = jax.tree.transpose(jax.tree.structure(weights), jax.tree.structure((0, 0)), both)
        return pairs[0], pairs[1]

    def _architecture_step(
        self, adam: list[Adam], weights: Any, images: Array, labels: Array, active: Array, involved: Any, mode: str
    ) -> list[Adam]:
        def loss(alphas: list[Array]) -> Array:
            logits = self._logits(weights, alphas, images, active, involved, mode)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            expected = self.cost.rest + sum(
                probabilities(alpha, mask) @ jnp.asarray(cost, alpha.dtype)
                for alpha, mask, cost in zip(alphas, involved, self.cost.of, strict=True)
            )
            return self.objective(entropy, expected, jnp.log)

        gradients = jax.grad(loss)([each.alpha for each in adam])
        after = []
        for old, g, place, pick in zip(adam, gradients, self.space.places, active, strict=True):
            step, square = old.step + 1, BETAS[1] * old.square + (1 - BETAS[1]) * g**2
            mean = BETAS[0] * old.mean + (1 - BETAS[0]) * g
            size = jnp.sqrt(square) / jnp.sqrt(1 - BETAS[1] ** step) + 1e-8
            alpha = old.alpha - self.alpha_rate * mean / (1 - BETAS[0] ** step) / size
            dropped = pick == place.candidates.index(ZERO) if ZERO in place.candidates else jnp.asarray(False)
            after.append(
                jax.tree.map(lambda a, b, dropped=dropped: jnp.where(dropped, a, b), old, Adam(alpha, mean, square, step))
            )
        return after


def _runs(path: Any, active: Array) -> Array:
    """Whether the weight at this path belongs to an active candidate or to a layer that always runs."""
    names = [getattr(each, "key", getattr(each, "idx", getattr(each, "name", None))) for each in path]
    return active[int(names[1])] == int(names[2]) if names[0] == "places" else jnp.asarray(True)


def _arrays(gates: Sequence[Gates], space: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    active = np.array([gate.active for gate in gates])
    masks = [np.isin(np.arange(len(place.candidates)), gate.involved) for gate, place in zip(gates, space.places, strict=True)]
    return active, masks
