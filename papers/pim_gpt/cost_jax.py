"""The closed-form latency in JAX: jitted, and mapped over thousands of designs at once. Call it under ``jax.enable_x64(True)``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from papers.pim_gpt import cost


@jax.jit
def latency(shape: cost.Shape, position: Any, design: cost.Design) -> dict[str, Any]:
    """ns of a token by part and in all, in the widest float that is switched on; the arguments are broadcast.

    Source: :mod:`papers.pim_gpt.cost`.
    """
    kind = jax.dtypes.canonicalize_dtype(jnp.float64)
    shape = cost.Shape(*(jnp.asarray(value, kind) for value in shape))
    design = cost.Design(*(jnp.asarray(value, kind) for value in design))
    return cost.latency(jnp, shape, jnp.asarray(position, kind), design)


@jax.jit
def sweep(shape: cost.Shape, position: Any, designs: cost.Design) -> Float[Array, " design"]:
    """Total ns of one model at one position on each of many designs (fields of equal length)."""
    return jax.vmap(lambda one: latency(shape, position, one)["total"])(designs)
