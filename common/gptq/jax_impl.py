"""GPTQ in JAX: one compiled loop over blocks of columns, and one over the columns of a block."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import ratios

BLOCK = 128


def dense(codes: Array, scales: Array) -> Array:
    return codes.astype(jnp.float32) * jnp.repeat(scales.astype(jnp.float32), codes.shape[-1] // scales.shape[-1], axis=-1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def nearest(weights: Array, bits: int, group: int, clip: str) -> tuple[Array, Array]:
    weights = weights if weights.dtype == jnp.float64 else weights.astype(jnp.float32)
    grouped = weights.reshape(*weights.shape[:-1], -1, group)
    scales = _scales(grouped, bits, clip, None)
    codes = _round(grouped, scales.astype(weights.dtype)[..., None], bits)
    return codes.reshape(weights.shape).astype(jnp.int8), scales


@functools.partial(jax.jit, static_argnums=(1, 2))
def prepare(hessian: Array, damping: float, order: str) -> tuple[Array | None, Array]:
    """The order of the columns, and U, upper, with U^T U the inverse of the damped Hessian in it; NaN where there is none."""
    columns, diagonal = None, jnp.diagonal(hessian, axis1=-2, axis2=-1)
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)
    damped = hessian + damping * diagonal.mean(-1)[..., None, None] * eye
    if order == "activation":
        columns = jnp.argsort(-diagonal, axis=-1, stable=True)
        damped = jnp.take_along_axis(jnp.take_along_axis(damped, columns[..., None], -2), columns[..., None, :], -1)
    lower = jnp.linalg.cholesky(damped)
    half = jax.scipy.linalg.solve_triangular(lower, jnp.broadcast_to(eye, lower.shape), lower=True)
    return columns, jnp.linalg.cholesky(half.mT @ half, upper=True)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def gptq(weights: Array, upper: Array, columns: Array | None, bits: int, group: int, clip: str) -> tuple[Array, Array]:
    weights, k = weights.astype(upper.dtype), weights.shape[-1]
    if columns is None:
        codes, scales = _blocks(weights, upper, None, bits, group, clip)
        return codes.astype(jnp.int8), scales
    scales, spread = _scales(weights.reshape(*weights.shape[:-1], -1, group), bits, clip, None), columns[..., None, :]
    steps = jnp.take_along_axis(jnp.repeat(scales.astype(weights.dtype), group, axis=-1), spread, -1)
    codes, _ = _blocks(jnp.take_along_axis(weights, spread, -1), upper, steps, bits, math.gcd(k, BLOCK), clip)
    return jnp.take_along_axis(codes, jnp.argsort(columns, axis=-1)[..., None, :], -1).astype(jnp.int8), scales


def _blocks(weights: Array, upper: Array, steps: Array | None, bits: int, size: int, clip: str) -> tuple[Array, Array]:
    """Codes of all columns in blocks of ``size``; without steps a block is a group and finds its own scale."""
    k = weights.shape[-1]
    behind = jnp.arange(k)

    def step(block: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, codes, scales = state
        start = block * size
        part = lax.dynamic_slice_in_dim(weights, start, size, -1)
        rows = lax.dynamic_slice_in_dim(upper, start, size, -2)
        inner = lax.dynamic_slice_in_dim(rows, start, size, -1)
        if steps is None:
            found = _scales(part[..., None, :], bits, clip, inner)
            scales = lax.dynamic_update_slice_in_dim(scales, found, block, -1)
            widths = jnp.broadcast_to(found.astype(part.dtype), part.shape)
        else:
            widths = lax.dynamic_slice_in_dim(steps, start, size, -1)
        rounded, errors = _block(part, inner, widths, bits)
        weights = weights - errors @ jnp.where(behind >= start + size, rows, 0.0)
        return weights, lax.dynamic_update_slice_in_dim(codes, rounded, start, -1), scales

    scales = jnp.ones((*weights.shape[:-1], k // size), jnp.float16)
    _, codes, scales = lax.fori_loop(0, k // size, step, (weights, jnp.zeros_like(weights), scales))
    return codes, scales


def _block(weights: Array, upper: Array, steps: Array, bits: int) -> tuple[Array, Array]:
    """Codes of one block of columns, and its errors for the columns behind it."""
    behind = jnp.arange(weights.shape[-1])

    def column(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, codes, errors = state
        value, width = weights[..., i], steps[..., i]
        code = _round(value, width, bits)
        error = (value - width * code) / upper[..., i, i, None]
        row = jnp.where(behind > i, upper[..., i, :], 0.0)
        weights = weights - error[..., None] * row[..., None, :]
        return weights, codes.at[..., i].set(code), errors.at[..., i].set(error)

    zero = jnp.zeros_like(weights)
    _, codes, errors = lax.fori_loop(0, weights.shape[-1], column, (weights, zero, zero))
    return codes, errors


def _scales(grouped: Array, bits: int, clip: str, upper: Array | None) -> Array:
    """(..., rows, groups) in float16 for (..., rows, groups, group); with "hessian" there is one group and its factor."""
    largest = jnp.abs(grouped).max(-1)
    first = _half(largest, bits, 1.0)
    if clip == "none":
        return first
    inverse = None if upper is None or clip == "error" else jnp.linalg.inv(upper)

    def attempt(state: tuple[Array, Array], ratio: Array) -> tuple[tuple[Array, Array], None]:
        best, least = state
        scales = _half(largest, bits, ratio)
        step = scales.astype(grouped.dtype)[..., None]
        error = step * _round(grouped, step, bits) - grouped
        if inverse is not None:
            error = (error[..., 0, :] @ inverse)[..., None, :]
        error = jnp.square(error).sum(-1)
        better = error < least
        return (jnp.where(better, scales, best), jnp.where(better, error, least)), None

    start = (first, jnp.full_like(largest, jnp.inf))
    return lax.scan(attempt, start, jnp.asarray(ratios(), grouped.dtype))[0][0]


def _half(largest: Array, bits: int, ratio: Array | float) -> Array:
    scales = (largest * (2.0 * ratio / (2**bits - 1))).astype(jnp.float16)
    return jnp.where(scales == 0, jnp.ones_like(scales), scales)


def _round(values: Array, step: Array, bits: int) -> Array:
    return jnp.clip(jnp.round(values / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
