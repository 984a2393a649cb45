"""JAX: one shifted product for each tap. XLA's own convolution, and what differentiation makes of shifted products, are up
to a hundred times slower on a CPU; so the gradients are written out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float

from .layout import Geometry, geometry


def depthwise_conv(
    x: Float[Array, "batch height width channel"],
    weight: Float[Array, "kernel_height kernel_width channel"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
) -> Float[Array, "batch out_height out_width channel"]:
    g = geometry(x.shape, weight.shape, stride, dilation, padding)
    if not g.batch:
        return jnp.zeros((0, g.out_height, g.out_width, g.channels), x.dtype)
    return _convolve(x, weight, g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=(2,))
def _convolve(x: Array, weight: Array, g: Geometry) -> Array:
    image, wide = _padded(x, g), _wide(x)
    y = jnp.zeros((g.batch, g.out_height, g.out_width, g.channels), wide)
    rows, columns = (g.stride * (count - 1) + 1 for count in (g.out_height, g.out_width))
    for u, v, i, j in g.taps():
        y += weight[u, v].astype(wide) * image[:, i : i + rows : g.stride, j : j + columns : g.stride]
    return y.astype(x.dtype)


def _forward(x: Array, weight: Array, g: Geometry) -> Any:
    return _convolve(x, weight, g), (x, weight)


def _backward(g: Geometry, kept: Any, dy: Array) -> Any:
    x, weight = kept
    return _input_gradient(weight, dy, g), _weight_gradient(x, dy, g)


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(2,))
def _input_gradient(weight: Array, dy: Array, g: Geometry) -> Array:
    """Pixels of one phase, that is of one remainder modulo the stride, are read by the same taps, at neighbouring outputs."""
    wide, (rows, columns), (down, across) = _wide(dy), g.phase(g.out_height, g.out_width), g.shift
    edges = ((0, 0), (down, rows - g.out_height), (across, columns - g.out_width), (0, 0))
    seed = jnp.pad(dy.astype(wide), edges)
    phases = [[jnp.zeros((g.batch, rows, columns, g.channels), wide) for _ in range(g.stride)] for _ in range(g.stride)]
    for u, v, i, j in g.taps():
        m, n = down - i // g.stride, across - j // g.stride
        phases[i % g.stride][j % g.stride] += weight[u, v].astype(wide) * seed[:, m : m + rows, n : n + columns]
    joined = rearrange(jnp.array(phases), "a e b m n c -> b (m a) (n e) c")
    return joined[:, g.top : g.top + g.height, g.left : g.left + g.width].astype(dy.dtype)


@functools.partial(jax.jit, static_argnums=(2,))
def _weight_gradient(x: Array, dy: Array, g: Geometry) -> Array:
    """One row of outputs after the other, added up place by place: the sums stay in the cache, and no axis of vectors is
    summed over until the end."""
    image, wide = _padded(x, g), _wide(x)
    reach, columns = (g.kernel_height - 1) * g.dilation + 1, g.stride * (g.out_width - 1) + 1
    starts = [v * g.dilation for v in range(g.kernel_width)]

    def add(row: Array, sums: list[Array]) -> list[Array]:
        b, i = row // g.out_height, row % g.out_height
        seed = lax.dynamic_slice(dy, (b, i, 0, 0), (1, 1, g.out_width, g.channels))[0].astype(wide)
        pixels = lax.dynamic_slice(image, (b, i * g.stride, 0, 0), (1, reach, image.shape[2], g.channels))[0, :: g.dilation]
        return [s + pixels[:, j : j + columns : g.stride] * seed for s, j in zip(sums, starts, strict=True)]

    zero = jnp.zeros((g.kernel_height, g.out_width, g.channels), wide)
    sums = lax.fori_loop(0, g.batch * g.out_height, add, [zero] * g.kernel_width)
    return jnp.stack([s.sum(1) for s in sums], 1).astype(x.dtype)


def _padded(x: Array, g: Geometry) -> Array:
    return jnp.pad(x.astype(_wide(x)), ((0, 0), (g.top, g.top), (g.left, g.left), (0, 0)))


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
