"""JAX: every branch under masks, for jit, vmap and grad; derivatives of any order by closed expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float

from . import formulas
from .branches import BRANCHES, LOG_I, LOG_K, RATIO_I

Evaluate = Callable[[int, int | None, Array, Array], Array]


def log_bessel_i(
    order: Float[Array, "*order"], x: Float[Array, "*x"], *, branch: str | None = None, variant: str | None = None
) -> Float[Array, "*out"]:
    """log I_v(x)."""
    return apply(_function, LOG_I, branch, variant, order, x)


def log_bessel_k(
    order: Float[Array, "*order"], x: Float[Array, "*x"], *, branch: str | None = None, variant: str | None = None
) -> Float[Array, "*out"]:
    """log K_v(x)."""
    return apply(_function, LOG_K, branch, variant, order, x)


def bessel_ratio(order: Float[Array, "*order"], x: Float[Array, "*x"], *, variant: str | None = None) -> Float[Array, "*out"]:
    """I_(v+1)(x) / I_v(x)."""
    return apply(_function, RATIO_I, None, variant, order, x)


def apply(function: Evaluate, kind: int, branch: str | None, variant: str | None, order: Array, x: Array) -> Array:
    """Broadcast, compute in the widest float there is and return the dtype that came in. Shared with the Pallas backend."""
    if variant not in (None, "masked"):
        raise ValueError(f"log_bessel: variant {variant!r} is of the torch backend; JAX has 'masked' alone")
    inside = jax.dtypes.canonicalize_dtype(jnp.float64)
    v, z = jnp.broadcast_arrays(order.astype(inside), x.astype(inside))
    return function(kind, None if branch is None else BRANCHES.index(branch), v, z).astype(x.dtype)


def differentiable(evaluate: Evaluate) -> Evaluate:
    """The four functions with their derivative in x; the Pallas backend brings its own ``evaluate``."""
    function = jax.custom_jvp(evaluate, nondiff_argnums=(0, 1))

    def push(kind: int, branch: int | None, primals: Any, tangents: Any) -> tuple[Array, Array]:
        (v, x), (v_dot, x_dot) = primals, tangents
        if not isinstance(v_dot, SymbolicZero):
            raise ValueError(
                "no gradient with respect to the order is defined; differentiate in x, or use lax.stop_gradient(order)"
            )
        value = function(kind, branch, v, x)
        if isinstance(x_dot, SymbolicZero):
            return value, jnp.zeros_like(value)
        return value, formulas.slope(jnp, lambda kind, v, x: function(kind, None, v, x), kind, v, x, value) * x_dot

    function.defjvp(push, symbolic_zeros=True)
    return function


def _masked(kind: int, branch: int | None, v: Array, x: Array) -> Array:
    return formulas.evaluate(jnp, kind, branch, v, x)


_function = differentiable(_masked)
