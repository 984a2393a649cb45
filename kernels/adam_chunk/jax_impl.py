"""JAX: one elementwise expression, which a compiler fuses into one pass; donate the arguments for an update in place."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .factors import Factors


def adam_chunk(
    parameter: Float[Array, " size"],
    gradient: Float[Array, " size"],
    mean: Float[Array, " size"],
    square: Float[Array, " size"],
    *,
    step: Any,
    learning_rate: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
) -> tuple[Float[Array, " size"], Float[Array, " size"], Float[Array, " size"]]:
    """p = shrink p - rate m / (sqrt(v) root + epsilon); see the package."""
    factors = factors_of(parameter.dtype, step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    return updated(parameter, gradient.astype(parameter.dtype), mean, square, factors)


def factors_of(
    dtype: Any, step: Any, learning_rate: Any, beta1: float, beta2: float, epsilon: float, weight_decay: float, decoupled: bool
) -> Any:
    """In double precision where nothing is traced. Shared with the Pallas backend, as the next one."""
    if isinstance(step, int) and not isinstance(learning_rate, Array):
        return Factors.of(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    count, rate = jnp.asarray(step, dtype), jnp.asarray(learning_rate, dtype)

    def corrected(beta: float) -> Array:
        # 1 - beta^t of a beta next to 1: the power would leave few digits of the difference.
        return -jnp.expm1(count * (math.log(beta) if beta else -math.inf))

    return Factors(
        shrink=1 - rate * weight_decay if decoupled else 1.0,  # type: ignore[arg-type]
        coupled=0.0 if decoupled else weight_decay,
        new_mean=1 - beta1,
        keep_square=beta2,
        new_square=1 - beta2,
        root=1 / jnp.sqrt(corrected(beta2)),  # type: ignore[arg-type]
        rate=rate / corrected(beta1),  # type: ignore[arg-type]
        epsilon=epsilon,
    )


def updated(p: Array, g: Array, m: Array, v: Array, factors: Any) -> tuple[Array, Array, Array]:
    g = g + factors.coupled * p
    m = m + factors.new_mean * (g - m)
    v = factors.keep_square * v + factors.new_square * g * g
    return factors.shrink * p - factors.rate * m / (jnp.sqrt(v) * factors.root + factors.epsilon), m, v
