"""Pallas: a program has a stretch of one row of an image and a slice of its channels, and walks over the taps.

The images come filled up with zeros and cut into phases, X_ae[m, n] = x_padded[s m + a, s n + e] for a stride s; then every tap
reads a stretch of neighbours, for any stride, forwards and in both gradients:

    y[i, j]      = sum_uv w[u, v] X_ae[i + m, j + n],    a, m = remainder and quotient of d u / s, e, n of d v / s
    dX_ae[i, j]  = sum_uv w[u, v] dy[i - m, j - n]       over the taps of this phase
    dw[u, v]     = sum_ij X_ae[i + m, j + n] dy[i, j]

On a TPU a program holds one image with 128 of its channels in its vector memory: 112 x 112, not much more.
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

from .layout import Geometry, geometry

CHANNELS = {"gpu": 32, "tpu": 128, "cpu": 32}
"""Channels of a program: a multiple of the lanes."""
PLACES = {"gpu": 16, "tpu": 8, "cpu": 8}
"""Places of a row that a program on a GPU handles together; the others take whole rows, a multiple of these."""
ROWS = 8
"""Rows of outputs that a program adds up for the gradient of the weight."""


def depthwise_conv(
    x: Float[Array, "batch height width channel"],
    weight: Float[Array, "kernel_height kernel_width channel"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
) -> Float[Array, "batch out_height out_width channel"]:
    if x.dtype == jnp.float64:
        raise ValueError("depthwise_conv: backend 'pallas' computes in float32, got float64; use backend='jax'")
    g = geometry(x.shape, weight.shape, stride, dilation, padding)
    if not g.batch:
        return jnp.zeros((0, g.out_height, g.out_width, g.channels), x.dtype)
    return _convolve(x, weight, g, jax.default_backend())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3))
def _convolve(x: Array, weight: Array, g: Geometry, platform: str) -> Array:
    rows, columns, part = g.out_height, _whole(g.out_width, platform), _part(g.out_width, platform)
    phases, taps = _phases(x, g, rows, columns, platform), _kernels(weight, platform)
    channels, image = taps.shape[1], phases.shape[3:5]
    y = pl.pallas_call(
        functools.partial(_forward_kernel, g=g, part=part),
        grid=(g.batch, channels // CHANNELS[platform], rows, columns // part),
        in_specs=[_all_phases(g, image, platform), _all_taps(g, platform)],
        out_specs=pl.BlockSpec((1, 1, part, CHANNELS[platform]), lambda b, c, i, j: (b, i, j, c)),
        out_shape=jax.ShapeDtypeStruct((g.batch, rows, columns, channels), jnp.float32),
        **_options(platform),
    )(phases, taps)
    return y[:, :, : g.out_width, : g.channels].astype(x.dtype)


def _forward(x: Array, weight: Array, g: Geometry, platform: str) -> Any:
    return _convolve(x, weight, g, platform), (x, weight)


def _backward(g: Geometry, platform: str, kept: Any, dy: Array) -> Any:
    x, weight = kept
    return _input_gradient(weight, dy, g, platform), _weight_gradient(x, dy, g, platform)


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _input_gradient(weight: Array, dy: Array, g: Geometry, platform: str) -> Array:
    (rows, columns), (down, across) = g.phase(g.out_height, g.out_width), g.shift
    columns, part, taps = _whole(columns, platform), _part(columns, platform), _kernels(weight, platform)
    edges = ((0, 0), (down, rows - g.out_height), (across, columns - g.out_width), (0, taps.shape[1] - g.channels))
    seed = jnp.pad(dy.astype(jnp.float32), edges)
    wide = CHANNELS[platform]
    phases = pl.pallas_call(
        functools.partial(_input_kernel, g=g, part=part),
        grid=(g.batch, taps.shape[1] // wide, rows, columns // part),
        in_specs=[pl.BlockSpec((1, *seed.shape[1:3], wide), lambda b, c, i, j: (b, 0, 0, c)), _all_taps(g, platform)],
        out_specs=pl.BlockSpec((g.stride, g.stride, 1, 1, part, wide), lambda b, c, i, j: (0, 0, b, i, j, c)),
        out_shape=jax.ShapeDtypeStruct((g.stride, g.stride, g.batch, rows, columns, taps.shape[1]), jnp.float32),
        **_options(platform),
    )(seed, taps)
    joined = rearrange(phases, "a e b m n c -> b (m a) (n e) c")
    return joined[:, g.top : g.top + g.height, g.left : g.left + g.width, : g.channels].astype(dy.dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _weight_gradient(x: Array, dy: Array, g: Geometry, platform: str) -> Array:
    """Sums of ROWS rows each, added afterwards."""
    columns, part, wide = _whole(g.out_width, platform), _part(g.out_width, platform), CHANNELS[platform]
    shares = -(-g.out_height // ROWS)
    phases = _phases(x, g, shares * ROWS, columns, platform)
    edges = ((0, 0), (0, shares * ROWS - g.out_height), (0, columns - g.out_width), (0, phases.shape[5] - g.channels))
    sums = pl.pallas_call(
        functools.partial(_weight_kernel, g=g, part=part),
        grid=(g.batch, phases.shape[5] // wide, shares),
        in_specs=[
            _all_phases(g, phases.shape[3:5], platform), pl.BlockSpec((1, ROWS, columns, wide), lambda b, c, r: (b, r, 0, c)),
        ],
        out_specs=pl.BlockSpec((1, 1, g.kernel_height * g.kernel_width, wide), lambda b, c, r: (b, r, 0, c)),
        out_shape=jax.ShapeDtypeStruct((g.batch, shares, g.kernel_height * g.kernel_width, phases.shape[5]), jnp.float32),
        **_options(platform),
    )(phases, jnp.pad(dy.astype(jnp.float32), edges))  # fmt: skip
    return rearrange(sums.sum((0, 1))[:, : g.channels], "(u v) c -> u v c", u=g.kernel_height).astype(x.dtype)


def _forward_kernel(phases: Any, weight: Any, y: Any, *, g: Geometry, part: int) -> None:
    i, j = pl.program_id(2), pl.program_id(3) * part
    total = jnp.zeros(y.shape[2:], jnp.float32)
    for tap, (a, e, m, n) in enumerate(_places(g)):
        total += weight[pl.ds(tap, 1), :] * phases[a, e, 0, i + m, pl.ds(j + n, part), :]
    y[0, 0] = total


def _input_kernel(dy: Any, weight: Any, phases: Any, *, g: Geometry, part: int) -> None:
    i, j = pl.program_id(2), pl.program_id(3) * part
    (down, across), zero = g.shift, jnp.zeros(phases.shape[4:], jnp.float32)
    totals = [[zero] * g.stride for _ in range(g.stride)]
    for tap, (a, e, m, n) in enumerate(_places(g)):
        totals[a][e] += weight[pl.ds(tap, 1), :] * dy[0, i + down - m, pl.ds(j + across - n, part), :]
    for a in range(g.stride):
        for e in range(g.stride):
            phases[a, e, 0, 0] = totals[a][e]


def _weight_kernel(phases: Any, dy: Any, sums: Any, *, g: Geometry, part: int) -> None:
    """One tap after the other, so that a program keeps one sum in its registers."""
    start = pl.program_id(2) * ROWS
    for tap, (a, e, m, n) in enumerate(_places(g)):

        def add(row: Any, total: Any, a: int = a, e: int = e, m: int = m, n: int = n) -> Any:
            for j in range(0, dy.shape[2], part):
                pixels = phases[a, e, 0, start + row + m, pl.ds(j + n, part), :]
                total += pixels * dy[0, row, pl.ds(j, part), :]
            return total

        total = lax.fori_loop(0, ROWS, add, jnp.zeros((part, sums.shape[3]), jnp.float32))
        sums[0, 0, pl.ds(tap, 1), :] = total.sum(0, keepdims=True)


def _places(g: Geometry) -> Iterator[tuple[int, int, int, int]]:
    """Phase (a, e) and place (m, n) in it that each tap reads for the output (0, 0)."""
    for _, _, i, j in g.taps():
        yield i % g.stride, j % g.stride, i // g.stride, j // g.stride


def _phases(x: Array, g: Geometry, rows: int, columns: int, platform: str) -> Array:
    rows, columns = (size * g.stride for size in g.phase(rows, columns))
    edges = (
        (0, 0),
        (g.top, rows - g.top - g.height),
        (g.left, columns - g.left - g.width),
        (0, -g.channels % CHANNELS[platform]),
    )
    return rearrange(jnp.pad(x.astype(jnp.float32), edges), "b (m a) (n e) c -> a e b m n c", a=g.stride, e=g.stride)


def _kernels(weight: Array, platform: str) -> Array:
    taps = rearrange(weight.astype(jnp.float32), "u v c -> (u v) c")
    return jnp.pad(taps, ((0, 0), (0, -taps.shape[1] % CHANNELS[platform])))


def _whole(columns: int, platform: str) -> int:
    return columns + -columns % PLACES[platform]


def _part(columns: int, platform: str) -> int:
    return PLACES[platform] if platform == "gpu" else _whole(columns, platform)


def _all_phases(g: Geometry, image: tuple[int, ...], platform: str) -> pl.BlockSpec:
    return pl.BlockSpec((g.stride, g.stride, 1, *image, CHANNELS[platform]), lambda b, c, *_: (0, 0, b, 0, 0, c))


def _all_taps(g: Geometry, platform: str) -> pl.BlockSpec:
    return pl.BlockSpec((g.kernel_height * g.kernel_width, CHANNELS[platform]), lambda b, c, *_: (0, c))


def _options(platform: str) -> dict[str, Any]:
    gpu = plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None
    return {"interpret": platform == "cpu", "compiler_params": gpu}


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for size, channels, kernel, stride, dilation in ((14, 40, 3, 1, 1), (15, 576, 5, 2, 1), (28, 192, 7, 1, 2)):
            x, weight = (2, size, size, channels), (kernel, kernel, channels)
            g = geometry(x, weight, stride, dilation, None)
            y = (2, g.out_height, g.out_width, channels)
            for form, function, shapes in (
                ("forward", _convolve, (x, weight)),
                ("input-gradient", _input_gradient, (weight, y)),
                ("weight-gradient", _weight_gradient, (x, y)),
            ):
                call = functools.partial(_called, function, g, platform)
                arrays = tuple((shape, "float32") for shape in shapes)
                yield Exported(f"{form}-k{kernel}-s{stride}-d{dilation}-{name}", call, arrays, (name,))


def _called(function: Any, g: Geometry, platform: str, *arrays: Array) -> Array:
    return function(*arrays, g, platform)
