"""The super-network in flax.nnx; its twin is :mod:`papers.proxyless_nas.supernet_torch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from common.models.weights import to_flax
from common.nas.network_jax import Mechanism, build
from papers.proxyless_nas.mixed_jax import mixed_op
from papers.proxyless_nas.space import Space
from papers.proxyless_nas.weights import initial


class Identity(nnx.Module):
    def __call__(self, x: Array) -> Array:
        return x


class SuperNet(nnx.Module):
    """Images (batch, height, width, channel) to logits by the active candidates; see the twin.

    Every pass normalises by the statistics of its batch, as the search does; running statistics of candidates are not kept.

    Args:
        param_dtype: of weights and computation; float64 only inside ``jax.enable_x64(True)``.
    """

    def __init__(
        self, space: Space, seed: int | None = 0, depthwise: Mechanism | None = None, param_dtype: Any = jnp.float32
    ) -> None:
        def module(layer: Any) -> nnx.Module:
            return Identity() if layer is None else build(layer, space.epsilon, depthwise, param_dtype)

        self.stem, self.first, self.last = module(space.stem), module(space.first), module(space.last)
        places = [nnx.List([module(place.layer(c)) for c in place.candidates]) for place in space.places]
        self.places = nnx.List(places)
        self.head = nnx.Linear(space.last.outputs, space.classes, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        if seed is not None:
            to_flax(self, initial(space, seed))

    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        active: Int[Array, " places"],
        involved: Sequence[Array],
        alphas: Sequence[Array],
        mode: str = "path",
    ) -> Float[Array, "batch classes"]:
        x = self.first(self.stem(images))
        for place, modules in enumerate(self.places):
            functions, weights = zip(*(functional(module) for module in modules), strict=True)
            x = mixed_op(x, alphas[place], functions, weights, active[place], involved[place], mode)
        return self.head(self.last(x).mean((1, 2)))


def functional(module: nnx.Module) -> tuple[Callable[[Any, Array], Array], Any]:
    """(function of state and x, state); what the module writes into itself is dropped."""
    graph, state = nnx.split(module)
    return lambda state, x: nnx.merge(graph, state, copy=True)(x), state
