"""Pallas: a program reads, updates and writes some rows of 128 elements of all four arrays."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plt
from jaxtyping import Float

from common.ops import Exported

from .factors import Factors
from .jax_impl import factors_of, updated

LANES = 128
ROWS = {"gpu": 8, "tpu": 256, "cpu": 256}
"""Of a program: what a GPU's holds in registers; on a TPU enough to hide the way to memory."""


def adam_chunk(
    parameter: Float[Array, " size"],
    gradient: Float[Array, " size"],
    mean: Float[Array, " size"],
    square: Float[Array, " size"],
    *,
    step: Any,
    learning_rate: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
) -> tuple[Float[Array, " size"], Float[Array, " size"], Float[Array, " size"]]:
    """p = shrink p - rate m / (sqrt(v) root + epsilon); see the package."""
    if parameter.dtype == jnp.float64:
        raise ValueError("adam_chunk: backend 'pallas' computes in float32, got float64; use backend='jax'")
    if not parameter.size:
        return parameter, mean, square
    factors = factors_of(jnp.float32, step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    numbers = jnp.stack([jnp.asarray(each, jnp.float32) for each in factors])
    platform = jax.default_backend()
    whole = ROWS[platform] * LANES
    filled = (jnp.pad(x, (0, -x.size % whole)).reshape(-1, LANES) for x in (parameter, gradient, mean, square))
    p, m, v = (x.reshape(-1)[: parameter.size] for x in _step(*filled, numbers, platform))
    return p, m, v


@functools.partial(jax.jit, static_argnames="platform")
def _step(p: Array, g: Array, m: Array, v: Array, numbers: Array, platform: str) -> tuple[Array, Array, Array]:
    rows = pl.BlockSpec((ROWS[platform], LANES), lambda i: (i, 0))
    # A TPU reads single numbers from its scalar memory.
    single = pl.BlockSpec(memory_space=pltpu.SMEM) if platform == "tpu" else pl.BlockSpec()
    found = pl.pallas_call(
        _kernel,
        grid=(p.shape[0] // ROWS[platform],),
        in_specs=[rows, rows, rows, rows, single],
        out_specs=[rows, rows, rows],
        out_shape=[jax.ShapeDtypeStruct(p.shape, jnp.float32)] * 3,
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(p, g, m, v, numbers)
    return found[0], found[1], found[2]


def _kernel(p: Any, g: Any, m: Any, v: Any, numbers: Any, out_p: Any, out_m: Any, out_v: Any) -> None:
    factors = Factors(*(numbers[i] for i in range(len(Factors._fields))))
    out_p[...], out_m[...], out_v[...] = updated(p[...], g[...].astype(jnp.float32), m[...], v[...], factors)


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for kind in ("float32", "bfloat16"):
            state, gradient = ((1024, LANES), "float32"), ((1024, LANES), kind)
            shapes = (state, gradient, state, state, ((len(Factors._fields),), "float32"))
            yield Exported(f"step-{kind}-{name}", functools.partial(_step, platform=platform), shapes, (name,))
