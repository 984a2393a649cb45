"""Pallas: a program keeps a tile of points and walks over all rows that may dominate them, in float32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int32

from common.ops import Exported

TILE = 64
"""Points of a program; rows of a step where the caller names no block."""


def dominance_count(points: Float[Array, "n m"], by: Float[Array, "k m"], *, block: int | None = None) -> Int32[Array, " n"]:
    if not len(points) or not len(by):
        return jnp.zeros(len(points), jnp.int32)
    rows = TILE if block is None else pl.next_power_of_2(block)
    # Columns of NaN fill the last tiles: they dominate nothing and are cut off.
    mine, theirs = (
        jnp.pad(each.astype(jnp.float32).T, ((0, 0), (0, -len(each) % size)), constant_values=jnp.nan)
        for each, size in ((points, TILE), (by, rows))
    )
    return _count(mine, theirs, rows, jax.default_backend())[: len(points)]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _count(points: Array, by: Array, rows: int, platform: str) -> Array:
    (m, n), k = points.shape, by.shape[1]
    gpu = plt.CompilerParams(num_warps=4, num_stages=2) if platform == "gpu" else None
    # One reference for each objective: a kernel may not index an axis whose length is no power of two.
    return pl.pallas_call(
        functools.partial(_kernel, m=m, rows=rows, steps=k // rows),
        grid=(n // TILE,),
        in_specs=[*[pl.BlockSpec((TILE,), lambda j: (j,))] * m, *[pl.BlockSpec((k,), lambda j: (0,))] * m],
        out_specs=pl.BlockSpec((TILE,), lambda j: (j,)),
        out_shape=jax.ShapeDtypeStruct((n,), jnp.int32),
        interpret=platform == "cpu",
        compiler_params=gpu,
    )(*points, *by)


def _kernel(*references: Any, m: int, rows: int, steps: int) -> None:
    mine, theirs, out = [each[...] for each in references[:m]], references[m:-1], references[-1]

    def step(s: Array, total: Array) -> Array:
        nowhere_worse = jnp.ones((rows, TILE), bool)
        better = jnp.zeros((rows, TILE), bool)
        for reference, own in zip(theirs, mine, strict=True):
            some = reference[pl.ds(s * rows, rows)]
            nowhere_worse &= some[:, None] <= own[None, :]
            better |= some[:, None] < own[None, :]
        return total + (nowhere_worse & better).astype(jnp.int32).sum(axis=0)

    out[...] = lax.fori_loop(0, steps, step, jnp.zeros((TILE,), jnp.int32))


def exports() -> Iterator[Exported]:
    function = functools.partial(_count, rows=TILE, platform="gpu")
    yield Exported("count", function, (((3, 256), "float32"), ((3, 128), "float32")), ("cuda",))
