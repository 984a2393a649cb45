"""The profile in JAX: one cell's bisection, compiled, mapped over everything that broadcasts."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from common.serving import saturated
from papers.melange.profile import Chip, Constants, Load


@partial(jax.jit, static_argnames=("load", "most", "stalls"))
def max_rate(
    chip: Chip, constants: Constants, load: Load, prompt: Any, output: Any, objective: Any, *, most: int, stalls: bool = True
) -> Float[Array, "*cells"]:
    """The highest rate within the objective; see :func:`papers.melange.profile_torch.max_rate`. float64 under x64."""
    cell = jnp.vectorize(partial(_cell, load=load, most=most, stalls=stalls))
    return cell(*(jnp.asarray(each, float) for each in (*chip, *constants, prompt, output, objective)))


def _cell(
    peak: Any, bandwidth: Any, room: Any, reach: Any, compute: Any, step: Any, sequence: Any, occupancy: Any,
    prompt: Any, output: Any, objective: Any, *, load: Load, most: int, stalls: bool,
) -> Any:  # fmt: skip
    """Every argument a number."""
    peak, bandwidth = compute * peak, reach * bandwidth
    tokens = (prompt + output) * load.cache

    def decode(batch: Any) -> Any:
        weights = jnp.maximum(load.weights / bandwidth, 2 * load.parameters * batch / peak)
        return weights + batch * (prompt + output / 2) * load.cache / bandwidth + step + sequence * batch

    def run(batch: Any) -> tuple[Any, Any]:
        return saturated(batch, output, decode(batch), 2 * load.parameters * prompt / peak * stalls)

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = jnp.floor((low + high) / 2)
        good = (run(middle)[1] <= objective) & (middle * occupancy * tokens <= room) & (tokens <= room)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    ends = jnp.zeros_like(tokens), jnp.full_like(tokens, most + 1)
    low, _ = jax.lax.fori_loop(0, most.bit_length(), halve, ends)
    return jnp.where(low > 0, run(jnp.maximum(low, 1.0))[0], 0.0)
