"""AdamW whose state is paged, in JAX; the twin is :mod:`papers.qlora.paged_torch`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from papers.qlora.paging import PageStore, Slices, views


class PagedAdamW:
    """AdamW over a flat dictionary of parameters, its moments in a :class:`papers.qlora.paging.PageStore`.

    One compiled update serves all full pages; the state goes to it page by page and never stands in memory as a whole.
    The same update of whole arrays, :meth:`dense`, gives the same bits.

    Args:
        rate, betas, epsilon, weight_decay: as ``lr``, ``betas``, ``eps`` and ``weight_decay`` of ``torch.optim.AdamW``.
    """

    def __init__(
        self, store: PageStore, rate: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
    ):  # fmt: skip
        self.store, self.rate, self.steps = store, rate, 0
        self._update = functools.partial(_update, betas=betas, epsilon=epsilon, weight_decay=weight_decay)

    def step(self, parameters: dict[str, Array], gradients: dict[str, Array]) -> dict[str, Array]:
        """The parameters after one step; their order decides the order of the pages."""
        self.steps += 1
        scalars = self._scalars(next(iter(parameters.values())).dtype)
        return {name: self._paged(name, p, gradients[name], scalars) for name, p in parameters.items()}

    def dense(
        self, step: int, parameters: dict[str, Array], gradients: dict[str, Array], state: dict[str, tuple[Array, Array]]
    ) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
        """The same step with all state in memory, for comparison: (parameters, state)."""
        self.steps = step
        scalars = self._scalars(next(iter(parameters.values())).dtype)
        new = {n: self._update(p.reshape(-1), gradients[n].reshape(-1), *state[n], scalars) for n, p in parameters.items()}
        return {n: new[n][0].reshape(p.shape) for n, p in parameters.items()}, {n: each[1:] for n, each in new.items()}

    def _paged(self, name: str, p: Array, gradient: Array, scalars: Array) -> Array:
        kind = np.dtype(p.dtype)
        slices = Slices(name, p.size, kind.itemsize, self.store.page)
        flat, gradient, parts = p.reshape(-1), gradient.reshape(-1), []
        for page, part in slices.parts:
            count = part.stop - part.start
            with self.store.use(page) as block:
                mean, square = views(block, kind, count, slices.second)
                # Copies: JAX takes arrays for immutable, and the page is written to below.
                new = self._update(flat[part], gradient[part], jnp.array(mean), jnp.array(square), scalars)
                parts.append(new[0])
                mean[:], square[:] = np.asarray(new[1]), np.asarray(new[2])
        return jnp.concatenate(parts).reshape(p.shape)

    def _scalars(self, kind: Any) -> Array:
        return jnp.asarray([self.rate, self.steps], kind)


@functools.partial(jax.jit, static_argnames=("betas", "epsilon", "weight_decay"))
def _update(
    p: Array, gradient: Array, mean: Array, square: Array, scalars: Array,
    betas: tuple[float, float], epsilon: float, weight_decay: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Decoupled weight decay, then p -= rate m' / (sqrt(v') + eps) with both moments corrected (Loshchilov, Hutter 2019)."""
    rate, step = scalars
    mean = mean + (1 - betas[0]) * (gradient - mean)
    square = betas[1] * square + (1 - betas[1]) * gradient * gradient
    spread = jnp.sqrt(square) / jnp.sqrt(1 - betas[1] ** step) + epsilon
    return p * (1 - rate * weight_decay) - rate / (1 - betas[0] ** step) * mean / spread, mean, square
