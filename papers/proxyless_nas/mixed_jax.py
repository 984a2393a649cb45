"""A place with binary gates in JAX; its twin is :mod:`papers.proxyless_nas.mixed_torch`.

Which candidate is active may be a traced number, so one compiled step serves every draw: the active path is a ``lax.switch``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from papers.proxyless_nas.gates import MODES

Operation = Callable[[Any, Array], Array]


def mixed_op(
    x: Float[Array, " *shape"],
    alpha: Float[Array, " candidates"],
    operations: Sequence[Operation],
    weights: Sequence[Any],
    active: Int[Array, ""] | int,
    involved: Bool[Array, " candidates"],
    mode: str = "full_v2",
) -> Float[Array, " *out_shape"]:
    """m(x) = sum_j g_j o_j(x) with one-hot g, and the paper's gradient of alpha; see the twin.

    Args:
        operations: ``o_j(weights[j], x)``, all to one shape.
        active: the candidate whose gate is 1.
        involved: the candidates that the draw was among, exactly two of them in mode "two".

    Weights of inactive candidates get gradients of 0, the nearest that a function of all weights has to none; who takes a step
    must leave them out (:func:`papers.proxyless_nas.steps_jax.weight_step`).
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; wanted one of {', '.join(MODES)}")
    if not len(operations) == len(weights) == len(alpha):
        raise ValueError(f"{len(operations)} operations, {len(weights)} weights, {len(alpha)} alphas; wanted as many")
    operations, weights = tuple(operations), tuple(weights)
    gate = binarise(alpha, active, involved)
    if mode in ("path", "full_v2"):
        gate = jax.lax.stop_gradient(gate) if mode == "path" else gate
        return _one_path(operations, mode == "full_v2", x, gate, weights, jnp.asarray(active))
    if mode == "two":
        other = jnp.argmax(involved & (jnp.arange(len(alpha)) != active))
        zero = jax.lax.stop_gradient(switch(operations, x, weights, other))
        return gate[active] * _one_path(operations, False, x, gate, weights, jnp.asarray(active)) + gate[other] * zero
    total = jnp.zeros(())
    for j, (operation, own) in enumerate(zip(operations, weights, strict=True)):
        y = operation(own, x)
        if mode == "full":
            y = jnp.where(active == j, y, jax.lax.stop_gradient(y))
        total = total + gate[j] * y
    return total


def binarise(
    alpha: Float[Array, " candidates"], active: Int[Array, ""] | int, involved: Bool[Array, " candidates"]
) -> Float[Array, " candidates"]:
    """The one-hot gates, with the gradient of the probabilities that they were drawn from."""
    p = probabilities(alpha, involved)
    one_hot = (jnp.arange(len(alpha)) == active).astype(alpha.dtype)
    return one_hot + (p - jax.lax.stop_gradient(p))


def probabilities(alpha: Float[Array, " candidates"], involved: Bool[Array, " candidates"]) -> Float[Array, " candidates"]:
    """softmax(alpha) over the candidates involved, 0 for the others."""
    return jax.nn.softmax(alpha, where=involved)


def switch(operations: tuple[Operation, ...], x: Array, weights: tuple[Any, ...], index: Array) -> Array:
    """The candidate at this index, as XLA branches; differentiated by JAX it keeps what any of them would need."""
    return jax.lax.switch(index, [lambda x, w, j=j: operations[j](w[j], x) for j in range(len(operations))], x, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _one_path(
    operations: tuple[Operation, ...], products: bool, x: Array, gate: Array, weights: tuple[Any, ...], active: Array
) -> Array:
    """The active candidate, of which only the inputs are kept: the backward pass computes it anew."""
    return switch(operations, x, weights, active)


def _forward(operations: Any, products: bool, x: Array, gate: Array, weights: Any, active: Array) -> tuple[Array, Any]:
    return switch(operations, x, weights, active), (x, gate, weights, active)


def _backward(operations: Any, products: bool, kept: Any, dy: Array) -> tuple[Any, ...]:
    x, gate, weights, active = kept

    def pull(j: int) -> Callable[..., Any]:
        def branch(x: Array, weights: Any, dy: Array) -> Any:
            y, back = jax.vjp(operations[j], weights[j], x)
            dweight, dx = back(dy)
            dweights = tuple(dweight if i == j else jax.tree.map(jnp.zeros_like, own) for i, own in enumerate(weights))
            return dx, dweights, jnp.vdot(y, dy)

        return branch

    dx, dweights, product = jax.lax.switch(active, [pull(j) for j in range(len(operations))], x, weights, dy)
    dgate = jnp.zeros_like(gate)
    if products:
        for j in range(len(operations)):
            # One after the other: x of the next is not there before the product of this one.
            found = jax.lax.cond(active == j, lambda x: product, lambda x, j=j: jnp.vdot(operations[j](weights[j], x), dy), x)
            x, found = jax.lax.optimization_barrier((x, found))
            dgate = dgate.at[j].set(found)
    return dx, dgate, dweights, None


_one_path.defvjp(_forward, _backward)
