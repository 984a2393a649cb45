"""The closed form over a grid, and its slopes, in JAX; each is compiled once for a network."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from papers.fast_model_scaling.complexity import Complexity
from papers.fast_model_scaling.specs import Spec
from papers.fast_model_scaling.sweep import scaled


@functools.partial(jax.jit, static_argnames=("base", "rounded"))
def grid(base: Spec, alphas: Float[Array, " alphas"], s: Float[Array, " s"], *, rounded: bool = True) -> Complexity:
    """(alphas, s) arrays of multiply-adds, parameters and activations."""

    def one(alpha: Array, s: Array) -> Complexity:
        return scaled(base, alpha, s, rounded=rounded)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(alphas, s)


@functools.partial(jax.jit, static_argnames=("base", "stem"))
def slopes(
    base: Spec, alphas: Float[Array, " alphas"], s: Float[Array, " s"], *, stem: bool = True
) -> Float[Array, "3 alphas s"]:
    """d log y / d log s of multiply-adds, parameters and activations y, unrounded."""

    def logs(alpha: Array, log_s: Array) -> Array:
        return jnp.log(jnp.stack(scaled(base, alpha, jnp.exp(log_s), rounded=False, stem=stem)))

    def slope(alpha: Array, log_s: Array) -> Array:
        return jax.jvp(lambda x: logs(alpha, x), (log_s,), (jnp.ones_like(log_s),))[1]

    over_s = jax.vmap(slope, in_axes=(None, 0), out_axes=1)
    return jax.vmap(over_s, in_axes=(0, None), out_axes=1)(alphas, jnp.log(s))
