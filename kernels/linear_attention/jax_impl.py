"""Decayed causal linear attention in JAX: a scan over blocks with its own two-pass backward."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float

BLOCK = 64

# Accelerators would otherwise round float32 factors to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, precision="highest")


def lightning_attention(
    q: Float[Array, "batch head n d"],
    k: Float[Array, "batch head n d"],
    v: Float[Array, "batch head n e"],
    slope: Float[Array, " head"],
    *,
    initial_state: Float[Array, "batch head d e"] | None = None,
    return_state: bool = False,
    block: int | None = None,
    variant: str = "loop",
) -> Any:
    """O_i = [(Q_i K_i^T) . M] V_i + lambda^r Q_i S, S <- lambda^B S + (lambda^(B-r) K_i)^T V_i; see the package."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    batch, heads, n, d = q.shape
    state = jnp.zeros((batch, heads, d, v.shape[-1]), wide) if initial_state is None else initial_state.astype(wide)
    o = jnp.zeros_like(v)
    if n:
        rate = rearrange(lax.stop_gradient(slope).astype(wide), "h -> h 1 1")
        block = min(block or BLOCK, n)
        o, state = _left(q, k, v, state, rate, block) if variant == "left" else _blocks(q, k, v, state, rate, block, variant)
    return (o, state) if return_state else o


def lightning_step(
    q: Float[Array, "batch head d"],
    k: Float[Array, "batch head d"],
    v: Float[Array, "batch head e"],
    state: Float[Array, "batch head d e"],
    slope: Float[Array, " head"],
) -> tuple[Float[Array, "batch head e"], Float[Array, "batch head d e"]]:
    """S = lambda S_before + k^T v; o = q S."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    decay = rearrange(jnp.exp(-lax.stop_gradient(slope).astype(wide)), "h -> h 1 1")
    state = decay * state.astype(wide) + _einsum("bhd,bhe->bhde", k.astype(wide), v.astype(wide))
    return _einsum("bhd,bhde->bhe", q.astype(wide), state).astype(q.dtype), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocks(q: Array, k: Array, v: Array, state: Array, rate: Array, block: int, variant: str) -> tuple[Array, Array]:
    """Algorithm 1: a scan that carries the state ("loop"), or all states by a scan and all blocks at once ("parallel")."""
    lengths = _lengths(q.shape[2], block, state.dtype)

    def within(state: Array, part: Any) -> Array:
        qs, ks, vs, length = part
        mask, read, _ = _decay(rate, block, length)
        scores = _einsum("bhid,bhjd->bhij", qs, ks) * mask
        return _einsum("bhij,bhje->bhie", scores, vs) + _einsum("bhid,bhde->bhie", qs * read, state)

    def update(state: Array, part: Any) -> Array:
        _, ks, vs, length = part
        return jnp.exp(-rate * length) * state + _einsum("bhid,bhie->bhde", ks * _decay(rate, block, length)[2], vs)

    parts = (*(_cut(x, block, state.dtype) for x in (q, k, v)), lengths)
    after, o = _walk(update, within, state, parts, variant)
    return _join(o, q.shape[2]).astype(v.dtype), after


def _blocks_forward(q: Array, k: Array, v: Array, state: Array, rate: Array, block: int, variant: str) -> Any:
    return _blocks(q, k, v, state, rate, block, variant), (q, k, v, state, rate)


def _blocks_backward(block: int, variant: str, saved: Any, cotangents: Any) -> tuple[Array, ...]:
    """Algorithm 2: forwards for dq and all that stays within a block, backwards for what dk and dv owe to later blocks."""
    q, k, v, state, rate = saved
    do, dstate = cotangents
    lengths = _lengths(q.shape[2], block, state.dtype)
    parts = (*(_cut(x, block, state.dtype) for x in (q, k, v, do)), lengths)

    def within(state: Array, part: Any) -> tuple[Array, Array, Array]:
        qs, ks, vs, dos, length = part
        mask, read, _ = _decay(rate, block, length)
        scores, dscores = _einsum("bhid,bhjd->bhij", qs, ks) * mask, _einsum("bhie,bhje->bhij", dos, vs) * mask
        dq = _einsum("bhij,bhjd->bhid", dscores, ks) + _einsum("bhie,bhde->bhid", dos * read, state)
        return dq, _einsum("bhij,bhid->bhjd", dscores, qs), _einsum("bhij,bhie->bhje", scores, dos)

    def update(state: Array, part: Any) -> Array:
        _, ks, vs, _, length = part
        return jnp.exp(-rate * length) * state + _einsum("bhid,bhie->bhde", ks * _decay(rate, block, length)[2], vs)

    def later(dstate: Array, part: Any) -> tuple[Array, Array]:
        _, ks, vs, _, length = part
        write = _decay(rate, block, length)[2]
        return _einsum("bhie,bhde->bhid", vs * write, dstate), _einsum("bhid,bhde->bhie", ks * write, dstate)

    def downdate(dstate: Array, part: Any) -> Array:
        qs, _, _, dos, length = part
        return jnp.exp(-rate * length) * dstate + _einsum("bhid,bhie->bhde", qs * _decay(rate, block, length)[1], dos)

    dfirst, after = _walk(downdate, later, dstate, parts, variant, reverse=True)
    _, (dq, dk, dv) = _walk(update, within, state, parts, variant)
    found = (_join(x, q.shape[2]).astype(q.dtype) for x in (dq, dk + after[0], dv + after[1]))
    return (*found, dfirst, jnp.zeros_like(rate))


_blocks.defvjp(_blocks_forward, _blocks_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _left(q: Array, k: Array, v: Array, state: Array, rate: Array, block: int) -> tuple[Array, Array]:
    """Each tile of queries against every tile of keys up to it; no running state, O(n^2)."""
    n = q.shape[2]
    qs, ks, vs = (_cut(x, block, state.dtype) for x in (q, k, v))

    def row(i: Array) -> Array:
        def tile(j: Array, o: Array) -> Array:
            return o + _einsum("bhij,bhje->bhie", _einsum("bhid,bhjd->bhij", qs[i], ks[j]) * _tile(rate, block, i, j), vs[j])

        return lax.fori_loop(0, i + 1, tile, _einsum("bhid,bhde->bhie", qs[i] * _since_start(rate, block, i), state))

    o = lax.map(row, jnp.arange(len(qs)))
    write = _join(jax.vmap(lambda j: _until_end(rate, block, j, n))(jnp.arange(len(qs)))[:, None], n)
    after = jnp.exp(-rate * n) * state + _einsum("bhid,bhie->bhde", k * write, v.astype(state.dtype))
    return _join(o, n).astype(v.dtype), after


def _left_forward(q: Array, k: Array, v: Array, state: Array, rate: Array, block: int) -> Any:
    return _left(q, k, v, state, rate, block), (q, k, v, state, rate)


def _left_backward(block: int, saved: Any, cotangents: Any) -> tuple[Array, ...]:
    q, k, v, state, rate = saved
    do, dstate = cotangents
    n = q.shape[2]
    qs, ks, vs, dos = (_cut(x, block, state.dtype) for x in (q, k, v, do))
    tiles = jnp.arange(len(qs))

    def row(i: Array) -> Array:
        def tile(j: Array, dq: Array) -> Array:
            return dq + _einsum("bhij,bhjd->bhid", _einsum("bhie,bhje->bhij", dos[i], vs[j]) * _tile(rate, block, i, j), ks[j])

        return lax.fori_loop(0, i + 1, tile, _einsum("bhie,bhde->bhid", dos[i] * _since_start(rate, block, i), state))

    def column(j: Array) -> tuple[Array, Array]:
        def tile(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
            mask = _tile(rate, block, i, j)
            scores, dscores = _einsum("bhid,bhjd->bhij", qs[i], ks[j]) * mask, _einsum("bhie,bhje->bhij", dos[i], vs[j]) * mask
            return found[0] + _einsum("bhij,bhid->bhjd", dscores, qs[i]), found[1] + _einsum("bhij,bhie->bhje", scores, dos[i])

        write = _until_end(rate, block, j, n)
        first = _einsum("bhie,bhde->bhid", vs[j] * write, dstate), _einsum("bhid,bhde->bhie", ks[j] * write, dstate)
        return lax.fori_loop(j, len(qs), tile, first)

    def started(total: Array, part: Any) -> tuple[Array, None]:
        i, q_tile, do_tile = part
        return total + _einsum("bhid,bhie->bhde", q_tile * _since_start(rate, block, i), do_tile), None

    dfirst, _ = lax.scan(started, jnp.exp(-rate * n) * dstate, (tiles, qs, dos))
    found = (_join(x, n).astype(q.dtype) for x in (lax.map(row, tiles), *lax.map(column, tiles)))
    return (*found, dfirst, jnp.zeros_like(rate))


_left.defvjp(_left_forward, _left_backward)


def _walk(update: Any, output: Any, state: Array, parts: Any, variant: str, reverse: bool = False) -> tuple[Array, Any]:
    """Output of every block from the state before it, in the scan or, if "parallel", for all blocks at once after it."""
    if variant == "loop":
        return lax.scan(lambda s, part: (update(s, part), output(s, part)), state, parts, reverse=reverse)
    last, states = lax.scan(lambda s, part: (update(s, part), s), state, parts, reverse=reverse)
    return last, jax.vmap(output)(states, parts)


def _cut(x: Array, block: int, wide: Any) -> Array:
    """(count, batch, head, block, d), the last block filled up with zeros."""
    x = jnp.pad(x.astype(wide), ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))
    return rearrange(x, "b h (t r) d -> t b h r d", r=block)


def _join(x: Array, n: int) -> Array:
    return rearrange(x, "t b h r d -> b h (t r) d")[:, :, :n]


def _lengths(n: int, block: int, wide: Any) -> Array:
    """Rows of each block that are really there: the state must decay by no more."""
    return jnp.minimum(n - jnp.arange(0, n, block), block).astype(wide)


def _decay(rate: Array, block: int, length: Array) -> tuple[Array, Array, Array]:
    """mask lambda^(i-j), read lambda^r, write lambda^(length-r): differences of exponents alone, lambda^-B overflows."""
    row = jnp.arange(1, block + 1, dtype=rate.dtype)[:, None]
    age = row - row.T
    mask = jnp.where(age >= 0, jnp.exp(-rate * jnp.maximum(age, 0)), 0)
    return mask, jnp.exp(-rate * row), jnp.exp(-rate * jnp.maximum(length - row, 0))


def _tile(rate: Array, block: int, i: Array, j: Array) -> Array:
    row = jnp.arange(block)
    age = (i - j) * block + row[:, None] - row
    return jnp.where(age >= 0, jnp.exp(-rate * jnp.maximum(age, 0).astype(rate.dtype)), 0)


def _since_start(rate: Array, block: int, i: Array) -> Array:
    return jnp.exp(-rate * (i * block + jnp.arange(1, block + 1))[:, None].astype(rate.dtype))


def _until_end(rate: Array, block: int, j: Array, n: int) -> Array:
    return jnp.exp(-rate * jnp.maximum(n - j * block - jnp.arange(1, block + 1), 0)[:, None].astype(rate.dtype))
