"""Pallas: a program has a tile of places and a tile of outputs, and multiplies with the weights spread out.

Spread out, the weights are one matrix that has zeros between groups and its columns in the shuffled order, W[g I + i, j G + g] =
w[g, i, j]: a product with it does both at once. The zeros are multiplied too. For the paper's two groups that is twice the
arithmetic of an operation that waits for memory; matrix units are not filled by so few channels anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float

from common.ops import Exported

TILE = {"gpu": 32, "tpu": 128, "cpu": 32}
"""Rows, columns and inner entries of a step: at least 16 for a GPU's matrix units, the lanes of a TPU."""


def group_pointwise_shuffle(
    x: Float[Array, "*places inputs"], weight: Float[Array, "group each_in each_out"]
) -> Float[Array, "*places outputs"]:
    if x.dtype == jnp.float64:
        raise ValueError("group_pointwise_shuffle: backend 'pallas' computes in float32, got float64; use backend='jax'")
    outputs = weight.shape[0] * weight.shape[2]
    if not x.size:
        return jnp.zeros((*x.shape[:-1], outputs), x.dtype)
    return _shuffled(x.reshape(-1, x.shape[-1]), weight, jax.default_backend()).reshape(*x.shape[:-1], outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shuffled(x: Array, weight: Array, platform: str) -> Array:
    return product(x, _spread(weight), platform).astype(x.dtype)


def _forward(x: Array, weight: Array, platform: str) -> Any:
    return _shuffled(x, weight, platform), (x, weight)


def _backward(platform: str, kept: Any, dy: Array) -> Any:
    x, weight = kept
    dx = product(dy, _spread(weight).T, platform).astype(x.dtype)
    groups = len(weight)
    whole = rearrange(product(x.T, dy, platform), "(g i) (j h) -> g h i j", g=groups, h=groups)
    return dx, jnp.einsum("ggij->gij", whole).astype(weight.dtype)


_shuffled.defvjp(_forward, _backward)


def _spread(weight: Array) -> Array:
    apart = jnp.eye(len(weight), dtype=weight.dtype)
    return rearrange(weight[:, :, :, None] * apart[:, None, None, :], "g i j h -> (g i) (j h)")


@functools.partial(jax.jit, static_argnums=(2,))
def product(a: Float[Array, "m k"], b: Float[Array, "k n"], platform: str) -> Float[Array, "m n"]:
    """a b in float32."""
    tile, (m, n) = TILE[platform], (a.shape[0], b.shape[1])
    a, b = (jnp.pad(each, [(0, -size % tile) for size in each.shape]) for each in (a, b))
    inner = a.shape[1]
    out = pl.pallas_call(
        functools.partial(_product_kernel, tile=tile),
        grid=(a.shape[0] // tile, b.shape[1] // tile),
        in_specs=[pl.BlockSpec((tile, inner), lambda i, j: (i, 0)), pl.BlockSpec((inner, tile), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((tile, tile), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((a.shape[0], b.shape[1]), jnp.float32),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2) if platform == "gpu" else None,
    )(a, b)
    return out[:m, :n]


def _product_kernel(a: Any, b: Any, out: Any, *, tile: int) -> None:
    def add(k: Any, total: Array) -> Array:
        part = pl.ds(pl.multiple_of(k * tile, tile), tile)
        return total + jnp.dot(a[:, part], b[part, :], preferred_element_type=jnp.float32, precision=lax.Precision.HIGHEST)

    out[...] = lax.fori_loop(0, a.shape[1] // tile, add, jnp.zeros(out.shape, jnp.float32))


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for form, (m, k, n) in {"forward": (392, 112, 112), "weight-gradient": (64, 392, 64)}.items():
            call = functools.partial(product, platform=platform)
            yield Exported(f"{form}-{name}", call, (((m, k), "float32"), ((k, n), "float32")), (name,))
