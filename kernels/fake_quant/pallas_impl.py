"""Pallas: tiles of a matrix whose rows, or whose columns, have a scale each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Float, Int

from common.ops import Exported

from .jax_impl import Split, bounds
from .layout import limits, split

TILE = (32, 128)


def fake_quantize(
    x: Float[Array, "*shape"],
    scale: Float[Array, "*channels"],
    *,
    bits: int,
    axis: int | None = None,
    group: int | None = None,
    zero_point: Int[Array, "*channels"] | None = None,
    signed: bool = True,
) -> Float[Array, "*shape"]:
    if x.dtype == jnp.float64:
        raise ValueError("fake_quantize: backend 'pallas' computes in float32, got float64; use backend='jax'")
    if not x.size:
        return x
    shape = split(x.shape, axis, group)
    return _fake_quantize(x, scale, *bounds(limits(bits, signed), zero_point, scale, shape[1]), shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fake_quantize(x: Array, scale: Array, low: Array, high: Array, shape: Split) -> Array:
    return _tiled(_forward_kernel, 1, shape, (x,), (scale, low, high))[0].reshape(x.shape).astype(x.dtype)


def _forward(x: Array, scale: Array, low: Array, high: Array, shape: Split) -> Any:
    return _fake_quantize(x, scale, low, high, shape), (x, scale, low, high)


def _backward(shape: Split, kept: Any, dy: Array) -> Any:
    x, scale, low, high = kept
    dx, terms = _tiled(_backward_kernel, 2, shape, (x, dy), (scale, low, high))
    to_scale = terms.reshape(shape).sum((0, 2)).reshape(scale.shape).astype(scale.dtype)
    return dx.reshape(x.shape).astype(x.dtype), to_scale, jnp.zeros_like(low), jnp.zeros_like(high)


_fake_quantize.defvjp(_forward, _backward)


def _tiled(kernel: Any, outputs: int, shape: Split, full: Sequence[Array], single: Sequence[Array]) -> list[Array]:
    """Matrices as the layout has them, filled up to whole tiles, and cut again."""
    outer, channels, inner = shape
    rows, columns = (outer, channels) if inner == 1 else (outer * channels, inner)
    pads = ((0, -rows % TILE[0]), (0, -columns % TILE[1]))
    matrices = [jnp.pad(each.astype(jnp.float32).reshape(rows, columns), pads) for each in full]
    vectors = [each.astype(jnp.float32).reshape(channels) for each in single]
    if inner == 1:
        vectors = [jnp.pad(each[None, :], ((0, 0), pads[1]), constant_values=1) for each in vectors]
    else:
        vectors = [jnp.pad(jnp.tile(each, outer)[:, None], (pads[0], (0, 0)), constant_values=1) for each in vectors]
    found = _called(kernel, outputs, jax.default_backend(), len(matrices), *matrices, *vectors)
    return [each[:rows, :columns] for each in found]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _called(kernel: Any, outputs: int, platform: str, matrices: int, *arrays: Array) -> Sequence[Array]:
    (rows, columns), vector = arrays[0].shape, arrays[-1].shape
    tile = pl.BlockSpec(TILE, lambda i, j: (i, j))
    across = pl.BlockSpec((1, TILE[1]), lambda i, j: (0, j))
    down = pl.BlockSpec((TILE[0], 1), lambda i, j: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(rows // TILE[0], columns // TILE[1]),
        in_specs=[tile] * matrices + [across if vector[0] == 1 else down] * (len(arrays) - matrices),
        out_specs=[tile] * outputs,
        out_shape=[jax.ShapeDtypeStruct((rows, columns), jnp.float32)] * outputs,
        interpret=platform == "cpu",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None,
    )(*arrays)


def _forward_kernel(x: Any, scale: Any, low: Any, high: Any, y: Any) -> None:
    quotient = x[...] * (1.0 / scale[...])
    y[...] = _rounded(jnp.minimum(jnp.maximum(quotient, low[...]), high[...])) * scale[...]


def _backward_kernel(x: Any, dy: Any, scale: Any, low: Any, high: Any, dx: Any, terms: Any) -> None:
    quotient = x[...] * (1.0 / scale[...])
    rounded = _rounded(quotient)
    cut = jnp.minimum(jnp.maximum(rounded, low[...]), high[...])
    inside = rounded == cut
    dx[...] = jnp.where(inside, dy[...], 0.0)
    terms[...] = dy[...] * (cut - jnp.where(inside, quotient, 0.0))


def _rounded(x: Any) -> Any:
    """Ties to even, by halves: floor is what every platform has."""
    down = jnp.floor(x)
    rest = x - down
    odd = down - 2.0 * jnp.floor(down * 0.5)
    return down + jnp.where((rest > 0.5) | ((rest == 0.5) & (odd > 0.5)), 1.0, 0.0)


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for form, vector in (("rows", (2 * TILE[0], 1)), ("columns", (1, 2 * TILE[1]))):
            for kernel, matrices, outputs in ((_forward_kernel, 1, 1), (_backward_kernel, 2, 2)):
                function = functools.partial(_called, kernel, outputs, platform, matrices)
                shapes = (((2 * TILE[0], 2 * TILE[1]), "float32"),) * matrices + ((vector, "float32"),) * 3
                label = "forward" if outputs == 1 else "backward"
                yield Exported(f"{label}-{form}-{name}", function, shapes, (name,))
