"""Noise in JAX: a loop of ten rounds, then element-wise expressions. Integers have 32 bits, so x64 is not needed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(counter: UInt32[Array, "n 4"], key: UInt32[Array, " 2"]) -> UInt32[Array, "n 4"]:
    return jnp.stack(rounds(*counter.T, *key), axis=1)


def gaussian(like: Float[Array, "*shape"], *, seed: Any, parameter: Any = 0, offset: int = 0) -> Float[Array, "*shape"]:
    return _noise(like.shape, _kind(like.dtype), words(seed), jnp.asarray(parameter, jnp.uint32), offset).astype(like.dtype)


def perturb(
    theta: Float[Array, "*shape"], *, scale: Any, seed: Any, parameter: Any = 0, offset: int = 0, keep: Any = 1.0
) -> Float[Array, "*shape"]:
    kind = _kind(theta.dtype)
    z = _noise(theta.shape, kind, words(seed), jnp.asarray(parameter, jnp.uint32), offset)
    return (jnp.asarray(keep, kind) * theta.astype(kind) + jnp.asarray(scale, kind) * z).astype(theta.dtype)


def words(seed: Any) -> Any:
    """The key of Philox: from a Python number, or an array of two words as it is."""
    return jnp.asarray([seed & 0xFFFFFFFF, seed >> 32], jnp.uint32) if isinstance(seed, int) else jnp.asarray(seed, jnp.uint32)


def rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds on uint32 arrays or tiles, written out."""
    state = (c0, c1, c2, c3, k0, k1)
    for _ in range(10):
        state = _round(0, state)
    return state[:4]


def _round(_: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    c0, c1, c2, c3, k0, k1 = state
    a, b = _high(c0, _MULTIPLIERS[0]), _high(c2, _MULTIPLIERS[1])
    c0, c1, c2, c3 = b ^ c1 ^ k0, c2 * jnp.uint32(_MULTIPLIERS[1]), a ^ c3 ^ k1, c0 * jnp.uint32(_MULTIPLIERS[0])
    return c0, c1, c2, c3, k0 + jnp.uint32(_WEYL[0]), k1 + jnp.uint32(_WEYL[1])


def _high(x: Any, multiplier: int) -> Any:
    """The high word of the 64-bit product, by halves of 16 bits."""
    low, high = x & jnp.uint32(0xFFFF), x >> jnp.uint32(16)
    m_low, m_high = jnp.uint32(multiplier & 0xFFFF), jnp.uint32(multiplier >> 16)
    middle = high * m_low + (low * m_low >> jnp.uint32(16))
    return high * m_high + (middle >> jnp.uint32(16)) + ((middle & jnp.uint32(0xFFFF)) + low * m_high >> jnp.uint32(16))


def _kind(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


@functools.partial(jax.jit, static_argnames=("shape", "kind", "offset"))
def _noise(shape: tuple[int, ...], kind: Any, key: Array, parameter: Any, offset: int) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    first = offset // 4
    blocks = -(-(offset + count) // 4) - first
    # The counter has 32 bits, the first of it is a Python number that may need all of them.
    block = jnp.arange(blocks, dtype=jnp.uint32) + jnp.uint32(first)
    skip = offset - 4 * first
    return normals(block, jnp.zeros_like(block) + parameter, key, kind).reshape(-1)[skip : skip + count].reshape(shape)


def normals(
    block: UInt32[Array, " n"], parameter: UInt32[Array, " n"], key: UInt32[Array, " 2"], kind: Any
) -> Float[Array, "n 4"]:
    """The four normals of each counter (block, 0, parameter, 0)."""
    zero = jnp.zeros_like(block)
    # A loop, because XLA would fuse the written-out rounds into every use of the words and compute them again for each.
    drawn = lax.fori_loop(0, 10, _round, (block, zero, parameter, zero, *key))[:4]
    u0, u1, u2, u3 = (((word >> jnp.uint32(9)).astype(kind) + 0.5) * 2.0**-23 for word in drawn)
    pairs = []
    for u, v in ((u0, u1), (u2, u3)):
        radius, angle = jnp.sqrt(-2 * jnp.log(u)), 2 * np.pi * v
        pairs += [radius * jnp.cos(angle), radius * jnp.sin(angle)]
    return jnp.stack(pairs, axis=1)
