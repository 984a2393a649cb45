"""Pallas: a program makes a tile of y^T = W x^T, walking over the bytes of its rows of W.

All arrays are handed over with the features in front, so that every slice is of whole rows, on a GPU as on a TPU. Rows
that are no whole blocks, and the gradient, which is another walk over the same tiles, are left to XLA (``jax_impl``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, UInt8

from common.ops import Exported

from . import jax_impl

TILE = {"cpu": (32, 32), "gpu": (32, 64), "tpu": (128, 128)}
"""Rows of x and rows of W of one program, by platform."""
BYTES = 16
"""Taken at a time: 32 weights of a row, which lie within one block."""


def matmul_nf4(
    x: Float[Array, "*batch k"],
    packed: UInt8[Array, "n half"],
    absmax: Float[Array, " blocks"],
    code: Float[Array, " 16"],
    *,
    block: int = 64,
) -> Float[Array, "*batch n"]:
    if x.dtype == jnp.float64:
        raise ValueError("matmul_nf4: backend 'pallas' computes in float32, got float64; use backend='jax'")
    if x.shape[-1] % block or not x.size or not packed.size:
        return jax_impl.matmul_nf4(x, packed, absmax, code, block=block)
    flat = x.reshape(-1, x.shape[-1])
    return _product(flat, packed, absmax, code, block).reshape(*x.shape[:-1], packed.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product(x: Array, packed: Array, absmax: Array, code: Array, block: int) -> Array:
    (n, half), m, platform = packed.shape, x.shape[0], jax.default_backend()
    rows, columns = TILE[platform]
    pad_m, pad_n = -m % rows, -n % columns
    bytes_first = jnp.pad(packed.T, ((0, 0), (0, pad_n)))
    scales = jnp.pad(absmax.reshape(n, 2 * half // block).T, ((0, 0), (0, pad_n)))
    even, odd = (jnp.pad(x[:, i::2].T, ((0, 0), (0, pad_m))) for i in (0, 1))
    return _walk(even, odd, bytes_first, scales, code, block, platform)[:n, :m].T


def _forward(x: Array, packed: Array, absmax: Array, code: Array, block: int) -> Any:
    return _product(x, packed, absmax, code, block), (packed, absmax, code)


_product.defvjp(_forward, jax_impl.backward)


@functools.partial(jax.jit, static_argnames=("block", "platform"))
def _walk(even: Array, odd: Array, packed: Array, scales: Array, code: Array, block: int, platform: str) -> Array:
    """(n, m) of x_even, x_odd (half, m), bytes (half, n) and scales (k / block, n)."""
    (half, n), m = packed.shape, even.shape[1]
    rows, columns = TILE[platform]
    features = pl.BlockSpec((half, rows), lambda i, j: (0, i))
    table = pl.BlockSpec(memory_space=pltpu.SMEM) if platform == "tpu" else pl.BlockSpec()
    return pl.pallas_call(
        functools.partial(_kernel, block=block),
        grid=(m // rows, n // columns),
        in_specs=[
            features, features, pl.BlockSpec((half, columns), lambda i, j: (0, j)),
            pl.BlockSpec((scales.shape[0], columns), lambda i, j: (0, j)), table,
        ],
        out_specs=pl.BlockSpec((columns, rows), lambda i, j: (j, i)),
        out_shape=jax.ShapeDtypeStruct((n, m), even.dtype),
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(even, odd, packed, scales, code)  # fmt: skip


def _kernel(even: Any, odd: Any, packed: Any, scales: Any, code: Any, out: Any, *, block: int) -> None:
    values = [code[i] for i in range(16)]
    each = block // (2 * BYTES)

    def step(i: Any, found: Any) -> Any:
        at = (pl.ds(i * BYTES, BYTES), slice(None))
        pair = packed[at].astype(jnp.int32)
        scale = scales[pl.ds(lax.div(i, each), 1), :]
        for part, index in ((even, pair >> 4), (odd, pair & 15)):
            weights = (_chosen(values, index, 8) * scale).astype(part.dtype)
            found += lax.dot_general(
                weights, part[at], (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
            )
        return found

    found = lax.fori_loop(0, packed.shape[0] // BYTES, step, jnp.zeros(out.shape, jnp.float32))
    out[...] = found.astype(out.dtype)


def _chosen(values: list[Any], index: Any, bit: int) -> Any:
    """values[index] by choices on one bit after the other."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return jnp.where((index & bit) != 0, _chosen(values[middle:], index, bit // 2), _chosen(values[:middle], index, bit // 2))


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for kind in ("float32", "bfloat16"):
            x, w = ((64, 256), kind), ((64, 256), "uint8")
            shapes = (x, x, w, ((2, 256), "float32"), ((16,), "float32"))
            yield Exported(f"walk-{kind}-{name}", functools.partial(_walk, block=64, platform=platform), shapes, (name,))
