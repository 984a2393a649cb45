"""Pallas: a program has a stretch of one row of an image and one group, and multiplies, tap by tap.

The images come filled up with zeros and cut into phases, X_ae[m, n] = x_padded[s m + a, s n + e] for a stride s; then every tap
reads a stretch of neighbours, for any stride. The gradient of x is a convolution of stride 1 of dy with zeros between; that of
the weight multiplies the transposed stretches with those of dy.

On a TPU a program holds one image of one group in its vector memory, its channels filled up to 128.
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

LEAST = {"gpu": 16, "tpu": 128, "cpu": 1}
"""Channels of an operand, at least."""
PLACES = {"gpu": 16, "tpu": 8, "cpu": 1}
"""Places of a row that a program on a GPU handles together; the others take whole rows, a multiple of these."""
ROWS = 8
"""Rows of outputs that a program adds up for the gradient of the weight."""


def group_conv(
    x: Float[Array, "batch height width channel"], weight: Float[Array, "kernel_height kernel_width each out"], *, stride: int = 1
) -> Float[Array, "batch out_height out_width out"]:
    if x.dtype == jnp.float64:
        raise ValueError("group_conv: backend 'pallas' computes in float32, got float64; use backend='jax'")
    g = geometry(x.shape, weight.shape, stride)
    if not g.batch:
        return jnp.zeros((0, g.out_height, g.out_width, g.groups * g.out), x.dtype)
    return _convolve(x, weight, g, jax.default_backend())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3))
def _convolve(x: Array, weight: Array, g: Geometry, platform: str) -> Array:
    taps = rearrange(weight.astype(jnp.float32), "u v c (g o) -> (u v) g c o", g=g.groups)
    return _called(_padded(x, g), taps, g, platform).astype(x.dtype)


def _forward(x: Array, weight: Array, g: Geometry, platform: str) -> Any:
    return _convolve(x, weight, g, platform), (x, weight)


def _backward(g: Geometry, platform: str, kept: Any, dy: Array) -> Any:
    x, weight = kept
    return _input_gradient(weight, dy, g, platform), _weight_gradient(x, dy, g, platform)


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _input_gradient(weight: Array, dy: Array, g: Geometry, platform: str) -> Array:
    seed = rearrange(dy.astype(jnp.float32), "b i j (g o) -> g b i j o", g=g.groups)
    edges = [
        (kernel - 1 - pad, size + pad - (g.stride * (count - 1) + 1), g.stride - 1)
        for kernel, pad, size, count in ((g.rows, g.top, g.height, g.out_height), (g.columns, g.left, g.width, g.out_width))
    ]
    seed = lax.pad(seed, jnp.float32(0), [(0, 0, 0), (0, 0, 0), *edges, (0, 0, 0)])
    mirrored = rearrange(weight[::-1, ::-1].astype(jnp.float32), "u v c (g o) -> (u v) g o c", g=g.groups)
    back = g._replace(each=g.out, out=g.each, stride=1, out_height=g.height, out_width=g.width)
    return _called(seed, mirrored, back, platform).astype(dy.dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _weight_gradient(x: Array, dy: Array, g: Geometry, platform: str) -> Array:
    """Sums of ROWS rows each, added afterwards."""
    columns, part, shares = _whole(g.out_width, platform), _part(g.out_width, platform), -(-g.out_height // ROWS)
    phases = _phases(_padded(x, g), g, shares * ROWS, columns, platform)
    each, out = phases.shape[-1], _operand(g.out, platform)
    edges = ((0, 0), (0, 0), (0, shares * ROWS - g.out_height), (0, columns - g.out_width), (0, out - g.out))
    seed = jnp.pad(rearrange(dy.astype(jnp.float32), "b i j (g o) -> g b i j o", g=g.groups), edges)
    sums = pl.pallas_call(
        functools.partial(_weight_kernel, g=g, part=part),
        grid=(g.groups, g.batch, shares),
        in_specs=[_all_phases(phases.shape), pl.BlockSpec((1, 1, ROWS, columns, out), lambda group, b, r: (group, b, r, 0, 0))],
        out_specs=pl.BlockSpec((1, 1, 1, g.rows * g.columns, each, out), lambda group, b, r: (group, b, r, 0, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((g.groups, g.batch, shares, g.rows * g.columns, each, out), jnp.float32),
        **_options(platform),
    )(phases, seed)
    found = sums.sum((1, 2))[:, :, : g.each, : g.out]
    return rearrange(found, "g (u v) c o -> u v c (g o)", u=g.rows).astype(x.dtype)


def _called(padded: Array, taps: Array, g: Geometry, platform: str) -> Array:
    """The convolution of padded images (group, batch, row, column, each) with taps (tap, group, each, out)."""
    rows, columns, part = g.out_height, _whole(g.out_width, platform), _part(g.out_width, platform)
    phases = _phases(padded, g, rows, columns, platform)
    each, out = phases.shape[-1], _operand(g.out, platform)
    taps = jnp.pad(taps, ((0, 0), (0, 0), (0, each - g.each), (0, out - g.out)))
    y = pl.pallas_call(
        functools.partial(_forward_kernel, g=g, part=part),
        grid=(g.groups, g.batch, rows, columns // part),
        in_specs=[
            _all_phases(phases.shape),
            pl.BlockSpec((g.rows * g.columns, 1, each, out), lambda group, b, i, j: (0, group, 0, 0)),
        ],
        out_specs=pl.BlockSpec((1, 1, 1, part, out), lambda group, b, i, j: (group, b, i, j, 0)),
        out_shape=jax.ShapeDtypeStruct((g.groups, g.batch, rows, columns, out), jnp.float32),
        **_options(platform),
    )(phases, taps)
    return rearrange(y[..., : g.out_width, : g.out], "g b i j o -> b i j (g o)")


def _forward_kernel(phases: Any, taps: Any, y: Any, *, g: Geometry, part: int) -> None:
    i, j = pl.program_id(2), pl.program_id(3) * part
    total = jnp.zeros(y.shape[3:], jnp.float32)
    for tap, (a, e, m, n) in enumerate(_places(g)):
        total += _dot(phases[a, e, 0, 0, i + m, pl.ds(j + n, part), :], taps[tap, 0])
    y[0, 0, 0] = total


def _weight_kernel(phases: Any, dy: Any, sums: Any, *, g: Geometry, part: int) -> None:
    """One tap after the other, so that a program keeps one sum in its registers."""
    start = pl.program_id(2) * ROWS
    for tap, (a, e, m, n) in enumerate(_places(g)):

        def add(row: Any, total: Any, a: int = a, e: int = e, m: int = m, n: int = n) -> Any:
            for j in range(0, dy.shape[3], part):
                pixels = phases[a, e, 0, 0, start + row + m, pl.ds(j + n, part), :]
                total += _dot(pixels.T, dy[0, 0, row, pl.ds(j, part), :])
            return total

        sums[0, 0, 0, tap] = lax.fori_loop(0, ROWS, add, jnp.zeros(sums.shape[4:], jnp.float32))


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _places(g: Geometry) -> Iterator[tuple[int, int, int, int]]:
    """Phase (a, e) and place (m, n) in it that each tap reads for the output (0, 0)."""
    for u, v in g.taps():
        yield u % g.stride, v % g.stride, u // g.stride, v // g.stride


def _padded(x: Array, g: Geometry) -> Array:
    groups = rearrange(x.astype(jnp.float32), "b h w (g c) -> g b h w c", g=g.groups)
    return jnp.pad(groups, ((0, 0), (0, 0), (g.top, g.top), (g.left, g.left), (0, 0)))


def _phases(padded: Array, g: Geometry, rows: int, columns: int, platform: str) -> Array:
    """(a, e, group, batch, m, n, each): all that ``rows`` x ``columns`` outputs read, and all that there is."""
    sizes = [
        g.stride * max(count + (kernel - 1) // g.stride, -(-size // g.stride))
        for count, kernel, size in ((rows, g.rows, padded.shape[2]), (columns, g.columns, padded.shape[3]))
    ]
    edges = [(0, size - there) for size, there in zip(sizes, padded.shape[2:4], strict=True)]
    padded = jnp.pad(padded, ((0, 0), (0, 0), *edges, (0, _operand(g.each, platform) - g.each)))
    return rearrange(padded, "g b (m a) (n e) c -> a e g b m n c", a=g.stride, e=g.stride)


def _operand(channels: int, platform: str) -> int:
    """Channels of an operand: a power of two on a GPU, whole vectors on a TPU."""
    least = LEAST[platform]
    return max(least, 1 << (channels - 1).bit_length()) if platform == "gpu" else -(-channels // least) * least


def _whole(columns: int, platform: str) -> int:
    return columns + -columns % PLACES[platform]


def _part(columns: int, platform: str) -> int:
    return PLACES[platform] if platform == "gpu" else _whole(columns, platform)


def _all_phases(shape: tuple[int, ...]) -> pl.BlockSpec:
    """All phases of one group of one image."""
    return pl.BlockSpec((*shape[:2], 1, 1, *shape[4:]), lambda group, b, *_: (0, 0, group, b, 0, 0, 0))


def _options(platform: str) -> dict[str, Any]:
    gpu = plt.CompilerParams(num_warps=4, num_stages=1) if platform == "gpu" else None
    return {"interpret": platform == "cpu", "compiler_params": gpu}


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for size, groups, each, out, kernel, stride in ((14, 5, 16, 16, 3, 1), (15, 3, 24, 40, 5, 2)):
            x, weight = (2, size, size, groups * each), (kernel, kernel, each, groups * out)
            g = geometry(x, weight, stride)
            y = (2, g.out_height, g.out_width, groups * out)
            for form, function, shapes in (
                ("forward", _convolve, (x, weight)),
                ("input-gradient", _input_gradient, (weight, y)),
                ("weight-gradient", _weight_gradient, (x, y)),
            ):
                call = functools.partial(_apply, function, g, platform)
                arrays = tuple((shape, "float32") for shape in shapes)
                yield Exported(f"{form}-k{kernel}-s{stride}-g{each}-{name}", call, arrays, (name,))


def _apply(function: Any, g: Geometry, platform: str, *arrays: Array) -> Array:
    return function(*arrays, g, platform)
