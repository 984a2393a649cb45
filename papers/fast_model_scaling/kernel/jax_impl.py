"""JAX: XLA's own grouped convolution. On a CPU its gradients take up to a hundred times as long as the convolution; so they are
written out, that of x as another convolution, that of the weight as one product of matrices for every group."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float

from .layout import Geometry, geometry


def group_conv(
    x: Float[Array, "batch height width channel"], weight: Float[Array, "kernel_height kernel_width each out"], *, stride: int = 1
) -> Float[Array, "batch out_height out_width out"]:
    g = geometry(x.shape, weight.shape, stride)
    if not g.batch:
        return jnp.zeros((0, g.out_height, g.out_width, g.groups * g.out), x.dtype)
    return _convolve(x, weight, g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=(2,))
def _convolve(x: Array, weight: Array, g: Geometry) -> Array:
    return _valid(_padded(x, g), weight, g.stride, g.groups).astype(x.dtype)


def _forward(x: Array, weight: Array, g: Geometry) -> Any:
    return _convolve(x, weight, g), (x, weight)


def _backward(g: Geometry, kept: Any, dy: Array) -> Any:
    x, weight = kept
    return _input_gradient(weight, dy, g), _weight_gradient(x, dy, g)


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(2,))
def _input_gradient(weight: Array, dy: Array, g: Geometry) -> Array:
    """A convolution of dy, with zeros between and around, with mirrored kernels whose inputs and outputs are exchanged."""
    seed, edges = dy.astype(_wide(dy)), []
    for kernel, pad, size, count in ((g.rows, g.top, g.height, g.out_height), (g.columns, g.left, g.width, g.out_width)):
        edges.append((kernel - 1 - pad, size + pad - (g.stride * (count - 1) + 1), g.stride - 1))
    seed = lax.pad(seed, jnp.zeros((), seed.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    mirrored = rearrange(weight[::-1, ::-1], "u v c (g o) -> u v o (g c)", g=g.groups)
    return _valid(seed, mirrored, 1, g.groups).astype(dy.dtype)


@functools.partial(jax.jit, static_argnums=(2,))
def _weight_gradient(x: Array, dy: Array, g: Geometry) -> Array:
    images = rearrange(_padded(x, g), "b h w (g c) -> g b h w c", g=g.groups)
    down, across = (g.stride * (count - 1) + 1 for count in (g.out_height, g.out_width))
    # What each output reads, side by side.
    read = [images[:, :, u : u + down : g.stride, v : v + across : g.stride] for u, v in g.taps()]
    patches = rearrange(jnp.concatenate(read, axis=-1), "g b i j k -> g (b i j) k")
    seed = rearrange(dy.astype(_wide(dy)), "b i j (g o) -> g (b i j) o", g=g.groups)
    found = jnp.einsum("gnk,gno->gko", patches, seed, precision=lax.Precision.HIGHEST)
    return rearrange(found, "g (u v c) o -> u v c (g o)", u=g.rows, v=g.columns).astype(x.dtype)


def _valid(padded: Array, weight: Array, stride: int, groups: int) -> Array:
    return lax.conv_general_dilated(
        padded, weight.astype(padded.dtype), (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups, precision=lax.Precision.HIGHEST,
    )  # fmt: skip


def _padded(x: Array, g: Geometry) -> Array:
    return jnp.pad(x.astype(_wide(x)), ((0, 0), (g.top, g.top), (g.left, g.left), (0, 0)))


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
