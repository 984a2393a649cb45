"""The mixture of :mod:`papers.moetuner.layer_torch` over the devices of a JAX mesh, with ``fixed`` flow.

Shapes are fixed, so every device sends every other as many rows as it could have for it at most, empty ones included; and every device
has as many slots for experts as the fullest, empty ones filled with zeros.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

AXIS = "expert"


class Experts(NamedTuple):
    """Weights of gated experts: down(silu(gate x) * (up x)), one after the other or in slots of devices."""

    gate: Float[Array, "*where width hidden"]
    up: Float[Array, "*where width hidden"]
    down: Float[Array, "*where hidden width"]


class Layout(NamedTuple):
    """Of every expert its device and its slot there; of every slot the expert in it, -1 where it is empty."""

    place: Int[Array, "*layer expert"]
    slot: Int[Array, "*layer expert"]
    held: Int[Array, "*layer device slot"]


@functools.partial(jax.jit, static_argnames=("mesh", "active"))
def mixture(
    mesh: Mesh,
    x: Float[Array, "token width"],
    router: Float[Array, "width expert"],
    experts: Experts,
    layout: Layout,
    active: int,
) -> Float[Array, "token width"]:
    """sum_e w_e expert_e(x) over the ``active`` likeliest experts, tokens and experts dealt to the devices of the mesh.

    Raises:
        ValueError: tokens that do not come out even.
    """
    devices, (place, slot, held) = mesh.shape[AXIS], layout
    if len(x) % devices:
        raise ValueError(f"{len(x)} tokens on {devices} devices do not come out even; wanted a multiple of {devices}")
    # An empty slot holds expert 0 times 0.
    laid = Experts(*(each[jnp.maximum(held, 0)] * (held >= 0)[..., None, None] for each in experts))

    def one(x: Array, router: Array, laid: Experts, place: Array, slot: Array) -> Array:
        weights, chosen = _route(x, router, active)
        target, pairs = place[chosen].ravel(), chosen.size
        # The n-th row for a device goes to its n-th place; nothing is ever dropped.
        nth = (jnp.cumsum(jax.nn.one_hot(target, devices, dtype=jnp.int32), axis=0)[jnp.arange(pairs), target]) - 1
        rows = jnp.zeros((devices, pairs, x.shape[1]), x.dtype).at[target, nth].set(jnp.repeat(x, active, axis=0))
        wanted = jnp.full((devices, pairs), -1).at[target, nth].set(slot[chosen].ravel())
        rows, wanted = (jax.lax.all_to_all(each, AXIS, 0, 0, tiled=True) for each in (rows, wanted))
        flat = rearrange(rows, "source row width -> (source row) width")
        which = jax.nn.one_hot(wanted.ravel(), held.shape[1], dtype=x.dtype)  # no slot for -1
        own = Experts(*(each[0] for each in laid))
        out = jnp.einsum("tsd,ts->td", _apply(own, flat), which).reshape(rows.shape)
        back = jax.lax.all_to_all(out, AXIS, 0, 0, tiled=True)
        return (back[target, nth].reshape(*chosen.shape, -1) * weights[..., None]).sum(axis=1)

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(one, mesh=mesh, in_specs=(split, whole, split, whole, whole), out_specs=split)(
        x, router, laid, place, slot
    )


def layout(place: Int[np.ndarray, "*layer expert"], devices: int, kept: Int[np.ndarray, "*layer expert"] | None = None) -> Layout:
    """Where the rows of every expert go; ``kept``: where the weights are, if not where the map says."""
    kept = place if kept is None else kept
    # The slot of an expert is the number of those before it on its device.
    before = np.tril(np.ones((place.shape[-1],) * 2, bool), -1)
    slot, own = (((each[..., None, :] == each[..., :, None]) & before).sum(axis=-1) for each in (place, kept))
    held = np.full((*place.shape[:-1], devices, max(slot.max(), own.max()) + 1), -1)
    for where in np.ndindex(kept.shape):
        held[*where[:-1], kept[where], own[where]] = where[-1]
    return Layout(*(jnp.asarray(each, jnp.int32) for each in (place, slot, held)))


class Parallel(nnx.Module):
    """Takes the place of a :class:`common.models.transformer_jax.Mixture`."""

    def __init__(self, inner: Any, mesh: Mesh, layout: Layout) -> None:
        self.mesh, self.active, self.router, self.experts = mesh, inner.active, inner.router, inner.experts
        self.layout = nnx.Variable(layout)

    def __call__(self, x: Float[Array, "batch seq width"], routes: Any = None) -> Float[Array, "batch seq width"]:
        flat = rearrange(x, "batch seq width -> (batch seq) width")
        experts = Experts(*(jnp.stack([getattr(each, name).kernel[...] for each in self.experts]) for name in Experts._fields))
        return mixture(self.mesh, flat, self.router.kernel[...], experts, self.layout.get_value(), self.active).reshape(x.shape)


def mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def _route(x: Array, router: Array, active: int) -> tuple[Array, Array]:
    weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ router, axis=-1), active)
    return weights / weights.sum(-1, keepdims=True), chosen


def _apply(experts: Experts, x: Float[Array, "token width"]) -> Float[Array, "token slot width"]:
    hidden = jax.nn.silu(jnp.einsum("td,edh->teh", x, experts.gate)) * jnp.einsum("td,edh->teh", x, experts.up)
    return jnp.einsum("teh,ehd->ted", hidden, experts.down)
