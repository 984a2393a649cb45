"""Noise in Pallas: a tile of weights is read, its noise drawn in registers and added. Each element computes its own counter,
four times the integer work of the other backends, for which no element has to change its place."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, UInt32

from common.ops import Exported
from papers.zo2.kernel.jax_impl import rounds, words

ROWS, LANES = 8, 128
"""A tile: what a TPU's registers hold, and a power of two of elements for a GPU."""


def philox(counter: UInt32[Array, "n 4"], key: UInt32[Array, " 2"]) -> UInt32[Array, "n 4"]:
    n = counter.shape[0]
    return _philox(_tiles(counter.T, n), key, _platform())[:, : -(-n // LANES)].reshape(4, -1)[:, :n].T if n else counter


def gaussian(like: Float[Array, "*shape"], *, seed: Any, parameter: Any = 0, offset: int = 0) -> Float[Array, "*shape"]:
    return perturb(jnp.zeros_like(like), scale=1.0, seed=seed, parameter=parameter, offset=offset)


def perturb(
    theta: Float[Array, "*shape"], *, scale: Any, seed: Any, parameter: Any = 0, offset: int = 0, keep: Any = 1.0
) -> Float[Array, "*shape"]:
    if theta.size == 0:
        return theta
    numbers = jnp.stack([jnp.asarray(scale, jnp.float32), jnp.asarray(keep, jnp.float32)])
    # The element's number may need 34 bits: its block and its place in the block go separately.
    place = jnp.stack([jnp.asarray(each, jnp.uint32) for each in (offset // 4, offset % 4, parameter)])
    tiles = _tiles(theta.reshape(1, -1), theta.size)[0]
    return (
        _perturb(tiles, numbers, jnp.concatenate([words(seed), place]), _platform())
        .reshape(-1)[: theta.size]
        .reshape(theta.shape)
    )


@functools.partial(jax.jit, static_argnames="platform")
def _perturb(theta: Array, numbers: Array, key: Array, platform: str) -> Array:
    tile, whole = pl.BlockSpec((ROWS, LANES), lambda i: (i, 0)), {"memory_space": _scalars(platform)}
    return pl.pallas_call(
        _perturb_kernel,
        grid=(theta.shape[0] // ROWS,),
        in_specs=[tile, pl.BlockSpec((1, 2), lambda i: (0, 0), **whole), pl.BlockSpec((1, 5), lambda i: (0, 0), **whole)],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(theta.shape, theta.dtype),
        **_options(platform),
    )(theta, numbers[None], key.astype(jnp.int32)[None])


def _perturb_kernel(theta: Any, numbers: Any, key: Any, out: Any) -> None:
    low, high, block, skip, parameter = (key[0, i].astype(jnp.uint32) for i in range(5))
    row, column = (lax.broadcasted_iota(jnp.int32, (ROWS, LANES), axis) for axis in (0, 1))
    element = (pl.program_id(0) * (ROWS * LANES) + row * LANES + column).astype(jnp.uint32) + skip
    zero = jnp.zeros((ROWS, LANES), jnp.uint32)
    drawn = rounds(block + (element >> jnp.uint32(2)), zero, zero + parameter, zero, low, high)
    u0, u1, u2, u3 = (((word >> jnp.uint32(9)).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-23 for word in drawn)
    place = (element & jnp.uint32(3)).astype(jnp.int32)
    radius = jnp.sqrt(-2.0 * jnp.log(jnp.where(place < 2, u0, u2)))
    angle = (2 * np.pi) * jnp.where(place < 2, u1, u3)
    z = radius * jnp.where((place & 1) == 0, jnp.cos(angle), jnp.sin(angle))
    out[...] = (numbers[0, 1] * theta[...].astype(jnp.float32) + numbers[0, 0] * z).astype(out.dtype)


@functools.partial(jax.jit, static_argnames="platform")
def _philox(counter: Array, key: Array, platform: str) -> Array:
    tile = pl.BlockSpec((4, ROWS, LANES), lambda i: (0, i, 0))
    words = lax.bitcast_convert_type(counter, jnp.int32)
    out = pl.pallas_call(
        _philox_kernel,
        grid=(counter.shape[1] // ROWS,),
        in_specs=[tile, pl.BlockSpec((1, 2), lambda i: (0, 0), memory_space=_scalars(platform))],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(counter.shape, jnp.int32),
        **_options(platform),
    )(words, lax.bitcast_convert_type(key, jnp.int32)[None])
    return lax.bitcast_convert_type(out, jnp.uint32)


def _philox_kernel(counter: Any, key: Any, out: Any) -> None:
    k0, k1 = (key[0, i].astype(jnp.uint32) for i in range(2))
    for i, word in enumerate(rounds(*(counter[i].astype(jnp.uint32) for i in range(4)), k0, k1)):
        out[i] = word.astype(jnp.int32)


def _tiles(arrays: Array, n: int) -> Array:
    """Rows of n elements as tiles, padded to whole ones."""
    whole = -(-n // (ROWS * LANES)) * ROWS * LANES
    return jnp.pad(arrays, ((0, 0), (0, whole - n))).reshape(arrays.shape[0], -1, LANES)


def _platform() -> str:
    return jax.default_backend()


def _options(platform: str) -> dict[str, Any]:
    # Named, so that GPUs are reached through Triton.
    return {
        "interpret": platform == "cpu",
        "compiler_params": plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    }


def _scalars(platform: str) -> Any:
    """Where single numbers go: a TPU has a memory of its own for them."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.SMEM if platform == "tpu" else None


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for kind in ("float32", "bfloat16"):
            arrays = (((64, LANES), kind), ((2,), "float32"), ((5,), "uint32"))
            yield Exported(f"perturb-{kind}-{name}", functools.partial(_perturb, platform=platform), arrays, (name,))
        arrays = (((4, 64, LANES), "uint32"), ((2,), "uint32"))
        yield Exported(f"philox-{name}", functools.partial(_philox, platform=platform), arrays, (name,))
