"""Tensor parallelism in JAX, within ``shard_map``: the same operators as :mod:`papers.megatron_lm.layers_torch`.

f and g have derivatives of their own, so what each rank differentiates is *the* loss, which all tensor ranks share.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def copy_to(x: Float[Array, "*shape"], axis: str) -> Float[Array, "*shape"]:
    """f: identity forward, all-reduce backward."""
    return x


copy_to.defvjp(lambda x, axis: (x, None), lambda axis, _, gradient: (lax.psum(gradient, axis),))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def reduce_from(x: Float[Array, "*shape"], axis: str) -> Float[Array, "*shape"]:
    """g: all-reduce forward, identity backward."""
    return lax.psum(x, axis)


reduce_from.defvjp(lambda x, axis: (lax.psum(x, axis), None), lambda axis, _, gradient: (gradient,))


def column(x: Float[Array, "batch seq inputs"], layer: dict[str, Any]) -> Float[Array, "batch seq *outputs"]:
    """y_i = x A_i^T + b_i; several leading axes of the weight stay axes of the result."""
    return jnp.tensordot(x, layer["weight"], (-1, -1)) + layer["bias"]


def row(x: Float[Array, "batch seq inputs"], layer: dict[str, Any], axis: str) -> Float[Array, "batch seq outputs"]:
    """y = g(sum_i x_i A_i^T) + b."""
    return reduce_from(x @ layer["weight"].T, axis) + layer["bias"]


def embed(tokens: Int[Array, "*place"], shard: Float[Array, "rows width"], axis: str) -> Float[Array, "*place width"]:
    """Rows of an embedding that is split by rows."""
    local = tokens - lax.axis_index(axis) * shard.shape[0]
    mine = (local >= 0) & (local < shard.shape[0])
    return reduce_from(shard[jnp.where(mine, local, 0)] * mine[..., None], axis)


def cross_entropy(
    logits: Float[Array, "*place rows"], targets: Int[Array, "*place"], vocabulary: int, axis: str
) -> Float[Array, "*place"]:
    """log sum_j exp(z_j) - z_target of logits that are split by the vocabulary and never gathered."""
    first, rows = lax.axis_index(axis) * logits.shape[-1], logits.shape[-1]
    logits = jnp.where(first + jnp.arange(rows) < vocabulary, logits, -jnp.inf)
    shifted = logits - lax.pmax(lax.stop_gradient(logits).max(-1), axis)[..., None]
    local = targets - first
    mine = (local >= 0) & (local < rows)
    target = jnp.take_along_axis(shifted, jnp.where(mine, local, 0)[..., None], -1)[..., 0]
    total, target = reduce_from(jnp.stack([jnp.exp(shifted).sum(-1), jnp.where(mine, target, 0)]), axis)
    return jnp.log(total) - target
