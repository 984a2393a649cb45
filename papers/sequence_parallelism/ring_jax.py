"""Ring self-attention over an axis of a mesh: to be called inside ``jax.shard_map``, where every device has its chunk.

The equations are those of :mod:`papers.sequence_parallelism.ring_torch`. :func:`ring_attention` is differentiated by JAX, which
turns every ``ppermute`` around; :func:`ring_attention_own` has the paper's backward pass written out: values, then keys, go
around once more, and the gradients of keys and values are summed over the devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float


def ring_attention(
    q: Float[Array, "batch head chunk dim"],
    k: Float[Array, "batch head chunk dim"],
    v: Float[Array, "batch head chunk dim"],
    axis: str,
    *,
    mask: Bool[Array, "batch keys"] | None = None,
    causal: bool = False,
    late: int = 0,
) -> Float[Array, "batch head chunk dim"]:
    """This device's rows of softmax(q k^T / sqrt(dim)) v over the chunks of all devices of a mesh axis.

    Args:
        mask: whether each key of the *whole* sequence is seen.
        causal: query i sees keys up to i, counted over the whole sequence.
        late: a control: blocks that have travelled are taken for those of the device that many places further on.

    Raises:
        ValueError: the mask is not as long as the whole sequence.
    """
    check(k, axis, mask)
    weights = _softmax(_scores(q * q.shape[-1] ** -0.5, k, axis, late), axis, mask, causal)
    return _values(weights, v, axis, late)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def ring_attention_own(
    q: Float[Array, "batch head chunk dim"],
    k: Float[Array, "batch head chunk dim"],
    v: Float[Array, "batch head chunk dim"],
    axis: str,
) -> Float[Array, "batch head chunk dim"]:
    """As :func:`ring_attention` without masks, with the paper's backward pass."""
    return _own_forward(q, k, v, axis)[0]


def _own_forward(q: Array, k: Array, v: Array, axis: str) -> tuple[Array, Any]:
    weights = _softmax(_scores(q * q.shape[-1] ** -0.5, k, axis, 0), axis, None, False)
    return _values(weights, v, axis, 0), (q, k, v, weights)


def _own_backward(axis: str, kept: Any, grad: Array) -> tuple[Array, Array, Array]:
    q, k, v, weights = kept
    of_weights = _scores(grad, v, axis, 0)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    dq = _values(of_scores, k, axis, 0)
    return dq, _own_sum(jnp.swapaxes(of_scores, -1, -2) @ q, axis), _own_sum(jnp.swapaxes(weights, -1, -2) @ grad, axis)


ring_attention_own.defvjp(_own_forward, _own_backward)


def linformer_attention(
    q: Float[Array, "batch head chunk dim"],
    k: Float[Array, "batch head chunk dim"],
    v: Float[Array, "batch head chunk dim"],
    key_columns: Float[Array, "rows chunk"],
    value_columns: Float[Array, "rows chunk"],
    axis: str | None,
) -> Float[Array, "batch head chunk dim"]:
    """See :mod:`papers.sequence_parallelism.linformer_torch`."""
    keys, values = key_columns @ k, value_columns @ v
    if axis is not None:
        keys, values = jax.lax.psum((keys, values), axis)
    return jax.nn.softmax(q * q.shape[-1] ** -0.5 @ jnp.swapaxes(keys, -1, -2), axis=-1) @ values


def check(k: Array, axis: str, mask: Array | None) -> None:
    """Shapes are equal on all devices by construction; a mask may still be too short."""
    whole = jax.lax.axis_size(axis) * k.shape[2]
    if mask is not None and mask.shape != (k.shape[0], whole):
        raise ValueError(
            f"the mask has shape {mask.shape}; wanted {(k.shape[0], whole)}, a value for each key of the whole sequence"
        )


def around(x: Array, axis: str) -> Iterator[Array]:
    """The chunks of all devices in the order in which they come by: own, then that of the device before, and so on."""
    size = jax.lax.axis_size(axis)
    for step in range(size):
        yield x
        if step < size - 1:
            x = jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])


def _arrival(axis: str, late: int) -> Array:
    """After how many passes the chunk of each device comes by: n - j for device j on device n."""
    size, rank = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    owner = jnp.arange(size)
    # A late block is filed under a neighbour, the own one is not.
    return jnp.where(owner == rank, 0, (rank - owner + late) % size) if late else (rank - owner) % size


def _scores(q: Array, k: Array, axis: str, late: int) -> Array:
    blocks = jnp.stack([q @ jnp.swapaxes(each, -1, -2) for each in around(k, axis)])
    return rearrange(blocks[_arrival(axis, late)], "rank batch head chunk key -> batch head chunk (rank key)")


def _values(weights: Array, v: Array, axis: str, late: int) -> Array:
    size = jax.lax.axis_size(axis)
    by_owner = rearrange(weights, "batch head chunk (rank key) -> rank batch head chunk key", rank=size)
    owner = jnp.argsort(_arrival(axis, late))
    return sum(by_owner[owner[step]] @ each for step, each in enumerate(around(v, axis)))  # type: ignore[return-value]


def _softmax(scores: Array, axis: str, mask: Array | None, causal: bool) -> Array:
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    if causal:
        chunk, keys = scores.shape[-2:]
        position = jax.lax.axis_index(axis) * chunk + jnp.arange(chunk)
        scores = jnp.where(jnp.arange(keys) <= position[:, None], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def _own_sum(whole: Array, axis: str) -> Array:
    """This device's chunk of the sum of all devices' arrays of the whole length."""
    return jax.lax.psum_scatter(whole, axis, scatter_dimension=2, tiled=True)
