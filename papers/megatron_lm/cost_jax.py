"""The closed form over many configurations at once in JAX, jitted. Call it under ``jax.enable_x64(True)``."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from papers.megatron_lm import cost
from papers.megatron_lm.shape import Shape


@partial(jax.jit, static_argnums=(0, 1, 3, 4))
def predict(shape: Shape, batch: int, plan: cost.Plan, machine: cost.Machine, scatter: bool = True) -> cost.Cost:
    """As :func:`papers.megatron_lm.cost.predict`; the fields of the plan are broadcast."""
    arrays = cost.Plan(*(jnp.asarray(each, jnp.float64) for each in plan))
    return cost.predict(jnp, shape, batch, arrays, machine, scatter)
