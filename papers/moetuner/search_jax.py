"""The searches of :mod:`papers.moetuner.search_torch` in JAX, each compiled as one loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64

from papers.moetuner.ilp import slowness


def group(
    load: Int[np.ndarray, " expert"], begin: Int[np.ndarray, "start expert"], count: int, moves: int = 1000
) -> Int64[np.ndarray, "start expert"]:
    """As :func:`papers.moetuner.search_torch.group`."""
    with jax.enable_x64(True):
        return np.asarray(_group(jnp.asarray(load, float), jnp.asarray(begin), count, moves))


def assign(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    begin: Int[np.ndarray, "start layer group"],
    moves: int = 1000,
) -> Int64[np.ndarray, "start layer group"]:
    """As :func:`papers.moetuner.search_torch.assign`."""
    with jax.enable_x64(True):
        return np.asarray(_assign(jnp.asarray(exchange, float), jnp.asarray(slowness(bandwidth)), jnp.asarray(begin), moves))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _group(p: Array, begin: Array, count: int, moves: int) -> Array:
    moved = p[:, None] - p

    def one(groups: Array) -> tuple[Array, Array]:
        own = (jnp.zeros(count).at[groups].add(p) - p.sum() / count)[groups]
        here, there = own[:, None], own[None, :]
        gain = jnp.abs(here - moved) + jnp.abs(there + moved) - jnp.abs(here) - jnp.abs(there)
        gain = jnp.where(groups[:, None] == groups, 0.0, gain)
        a, b = jnp.unravel_index(gain.argmin(), gain.shape)
        better = gain[a, b] < -1e-9
        return jnp.where(better, groups.at[a].set(groups[b]).at[b].set(groups[a]), groups), better

    return _until_none(jax.vmap(one), begin, moves)


@functools.partial(jax.jit, static_argnums=3)
def _assign(c: Array, slow: Array, begin: Array, moves: int) -> Array:
    layers, count = begin.shape[1:]
    first, second = np.triu_indices(count, 1)
    swaps = np.tile(np.arange(count), (len(first), 1))
    swaps[np.arange(len(first)), first], swaps[np.arange(len(first)), second] = second, first

    def largest(here: Array, there: Array) -> Array:
        return (c * slow[here[..., :, None], there[..., None, :]]).max((-2, -1))

    def one(place: Array) -> tuple[Array, Array]:
        now = largest(place[:-1], place[1:])
        tried = jnp.moveaxis(place[:, swaps], 1, 0)  # swap, layer, group
        gain = jnp.zeros((len(swaps), layers))
        gain = gain.at[:, 1:].add(largest(place[:-1], tried[:, 1:]) - now).at[:, :-1].add(largest(tried[:, :-1], place[1:]) - now)
        swap, layer = jnp.unravel_index(gain.argmin(), gain.shape)
        better = gain[swap, layer] < -1e-9
        return jnp.where(better, place.at[layer].set(tried[swap, layer]), place), better

    return _until_none(jax.vmap(one), begin, moves)


def _until_none(step, begin: Array, moves: int) -> Array:
    """Steps until no start gets better, at most ``moves``."""

    def go(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        place, better = step(state[0])
        return place, better.any(), state[2] + 1

    return jax.lax.while_loop(lambda state: state[1] & (state[2] < moves), go, (begin, jnp.array(True), jnp.array(0)))[0]
