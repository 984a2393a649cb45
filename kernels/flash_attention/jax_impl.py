"""Attention in tiles in JAX: a map over tiles of queries, in it a loop over the tiles of keys that they see."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jaxtyping import Float

ROWS, KEYS = 256, 512
"""Of a tile. Heads that share keys count as rows."""

# Accelerators would otherwise round float32 factors to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, precision="highest")


class Setting(NamedTuple):
    """What is known before the arrays are; ``rows`` queries and ``width`` keys make a tile, ``keys`` are really there."""

    causal: bool
    window: int | None
    scale: float
    rows: int
    width: int
    keys: int


def flash_attention(
    q: Float[Array, "batch head seq dim"],
    k: Float[Array, "batch kv_head keys dim"],
    v: Float[Array, "batch kv_head keys value_dim"],
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int = 0,
    query_start: Any = 0,
    key_start: Any = 0,
    scale: float = 1.0,
    block: tuple[int, int] | None = None,
) -> tuple[Float[Array, "batch head seq value_dim"], Float[Array, "batch head seq"]]:
    """m' = max(m, max_j s), l <- e^(m-m') l + sum_j e^(s-m'), o <- e^(m-m') o + e^(s-m') v; see the package."""
    (batch, heads, seq, _), groups, keys = q.shape, k.shape[1], k.shape[2]
    if 0 in (batch, heads, seq, keys):
        return nothing(q, v)
    rows, width = block or (max(ROWS // (heads // groups), 16), KEYS)
    setting = Setting(causal, window, scale, min(rows, seq), min(width, keys), keys)
    q = rearrange(q, "b (g r) i d -> (b g) r i d", g=groups)
    k, v = (rearrange(x, "b g j d -> (b g) j d") for x in (k, v))
    o, lse = _attention(*alike(q, k, v, offsets(sinks, query_start, key_start)), setting)
    return rearrange(o, "(b g) r i e -> b (g r) i e", b=batch), rearrange(lse, "(b g) r i -> b (g r) i", b=batch)


def nothing(q: Array, v: Array) -> tuple[Array, Array]:
    """The result where no query or no key is. Shared with the Pallas backend, as the next two."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.zeros((*q.shape[:3], v.shape[3]), q.dtype), jnp.full(q.shape[:3], -jnp.inf, wide)


def offsets(sinks: int, query_start: Any, key_start: Any) -> Array:
    """Query i sits at key ``shift`` + i, and the first ``sinks`` keys are sinks; both may be traced."""
    query_start, key_start = (jnp.asarray(x, jnp.int32) for x in (query_start, key_start))
    return jnp.stack([query_start - key_start, jnp.maximum(sinks - key_start, 0)])


def alike(*arrays: Array) -> tuple[Array, ...]:
    """Within shard_map: all as varying over the mesh as any one is, as carries of loops must be. Elsewhere nothing."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(sorted(frozenset().union(*varying) - axes)) for axes in varying]
    return tuple(lax.pcast(x, axes, to="varying") if axes else x for x, axes in zip(arrays, missing, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q: Array, k: Array, v: Array, where: Array, setting: Setting) -> tuple[Array, Array]:
    """o (g, r, i, e) and lse (g, r, i) of q (g, r, i, d), k (g, j, d), v (g, j, e)."""
    wide, repeats, seq = jnp.promote_types(q.dtype, jnp.float32), q.shape[1], q.shape[2]
    queries, keys, values = _cut_rows(q * jnp.asarray(setting.scale, wide), setting.rows, wide), *_cut_keys(k, v, setting, wide)
    # Halved, so that the difference of two of these stays finite.
    lowest = jnp.finfo(wide).min / 2

    def row(part: tuple[Array, Array]) -> tuple[Array, Array]:
        i, tile = part
        start = _zeros(tile, tile.shape[:2]) + lowest, _zeros(tile, tile.shape[:2]), _zeros(tile, (*tile.shape[:2], v.shape[-1]))

        def step(s: Array, carried: Any) -> Any:
            top, total, out = carried
            j = tile_of(s)
            scores = _hidden(_einsum("gid,gjd->gij", tile, keys[j]), i, j, where, repeats, setting)
            new = jnp.maximum(top, scores.max(-1))
            decay, weights = jnp.exp(top - new), jnp.exp(scores - new[..., None])
            return new, total * decay + weights.sum(-1), out * decay[..., None] + _einsum("gij,gje->gie", weights, values[j])

        count, tile_of = visible(i, where, setting)
        top, total, out = lax.fori_loop(0, count, step, start)
        # A query that saw a key has at least its largest weight, 1.
        total_or_one = jnp.where(total > 0, total, 1)
        return out / total_or_one[..., None], jnp.where(total > 0, top + jnp.log(total_or_one), -jnp.inf)

    o, lse = lax.map(row, (jnp.arange(len(queries)), queries))
    return _join(o, repeats, seq).astype(q.dtype), _join(lse[..., None], repeats, seq)[..., 0]


def _forward(q: Array, k: Array, v: Array, where: Array, setting: Setting) -> Any:
    o, lse = _attention(q, k, v, where, setting)
    return (o, lse), (q, k, v, where, o, lse)


def _backward(setting: Setting, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """Tiles of queries one after the other; what they owe to the keys is added up in place."""
    q, k, v, where, o, lse = saved
    wide, repeats, seq = lse.dtype, q.shape[1], q.shape[2]
    level, do, offset = prepared(o, lse, *cotangents)
    queries = _cut_rows(q * jnp.asarray(setting.scale, wide), setting.rows, wide)
    levels, douts, offsets = (_cut_rows(x, setting.rows, wide) for x in (level[..., None], do, offset[..., None]))
    keys, values = _cut_keys(k, v, setting, wide)

    def row(found: tuple[Array, Array], part: Any) -> Any:
        i, tile, level, dout, offset = part

        def step(s: Array, carried: Any) -> Any:
            dtile, dk, dv = carried
            j = tile_of(s)
            scores = _hidden(_einsum("gid,gjd->gij", tile, keys[j]), i, j, where, repeats, setting)
            weights = jnp.exp(scores - level)
            dscores = weights * (_einsum("gie,gje->gij", dout, values[j]) + offset)
            dtile = dtile + _einsum("gij,gjd->gid", dscores, keys[j])
            dk = dk.at[j].add(_einsum("gij,gid->gjd", dscores, tile))
            return dtile, dk, dv.at[j].add(_einsum("gij,gie->gje", weights, dout))

        count, tile_of = visible(i, where, setting)
        dtile, dk, dv = lax.fori_loop(0, count, step, (_zeros(tile, tile.shape), *found))
        return (dk, dv), dtile * setting.scale

    first = _zeros(keys, keys.shape), _zeros(values, values.shape)
    (dk, dv), dq = lax.scan(row, first, (jnp.arange(len(queries)), queries, levels, douts, offsets))
    dk, dv = (rearrange(x, "t g j d -> g (t j) d")[:, : setting.keys] for x in (dk, dv))
    return _join(dq, repeats, seq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def prepared(o: Array, lse: Array, do: Array, dlse: Array) -> tuple[Array, Array, Array]:
    """lse, do and dlse - do o of the backward. Whatever arrives at a query that saw nothing, NaN of a merge included, ends
    here: its weights are exp(-inf). Shared with the Pallas backend."""
    unseen = lse == -jnp.inf
    do = jnp.where(unseen[..., None], 0, do.astype(lse.dtype))
    offset = jnp.where(unseen, 0, dlse - (do * o.astype(lse.dtype)).sum(-1))
    return jnp.where(unseen, jnp.inf, lse), do, offset


def visible(i: Any, where: Any, setting: Setting) -> tuple[Any, Any]:
    """How many tiles of keys tile i of queries sees, and a function from a number below that to the tile: first those with
    sinks, then those within the window. Shared with the Pallas backend."""
    shift, sinks = where[0], where[1]
    first, last = i * setting.rows + shift, (i + 1) * setting.rows - 1 + shift
    end = jnp.clip(last + 1, 0, setting.keys) if setting.causal else setting.keys
    stop = whole(end + setting.width - 1, setting.width)
    if setting.window is None:
        return stop, lambda s: s
    start = whole(jnp.clip(first - setting.window + 1, 0, end), setting.width)
    sunk = jnp.minimum(whole(jnp.minimum(sinks, end) + setting.width - 1, setting.width), start)
    return sunk + stop - start, lambda s: jnp.where(s < sunk, s, s - sunk + start)


def whole(count: Any, size: int) -> Any:
    """count // size of what is not negative; // itself asks for signs, which Pallas lowers for no absent TPU."""
    return count // size if isinstance(count, int) else lax.div(count, size)


def seen(at: Array, key: Array, where: Any, setting: Setting) -> Array:
    """Whether the query at key ``at`` sees a key. Shared with the Pallas backend."""
    found = key < setting.keys
    if setting.causal:
        found = found & (key <= at)
    if setting.window is not None:
        found = found & ((at - key < setting.window) | (key < where[1]))
    return found


def _hidden(scores: Array, i: Array, j: Array, where: Array, repeats: int, setting: Setting) -> Array:
    at = jnp.tile(jnp.arange(setting.rows), repeats) + i * setting.rows + where[0]
    key = jnp.arange(setting.width) + j * setting.width
    return jnp.where(seen(at[:, None], key, where, setting), scores, -jnp.inf)


def _zeros(like: Array, shape: tuple[int, ...]) -> Array:
    return alike(jnp.zeros(shape, like.dtype), like)[0]


def _cut_rows(x: Array, rows: int, wide: Any) -> Array:
    """(tile, g, repeats * rows, d), the last tile filled up with zeros."""
    x = jnp.pad(x.astype(wide), ((0, 0), (0, 0), (0, -x.shape[2] % rows), (0, 0)))
    return rearrange(x, "g r (t i) d -> t g (r i) d", i=rows)


def _join(x: Array, repeats: int, seq: int) -> Array:
    return rearrange(x, "t g (r i) d -> g r (t i) d", r=repeats)[:, :, :seq]


def _cut_keys(k: Array, v: Array, setting: Setting, wide: Any) -> tuple[Array, Array]:
    filled = (jnp.pad(x.astype(wide), ((0, 0), (0, -x.shape[1] % setting.width), (0, 0))) for x in (k, v))
    keys, values = (rearrange(x, "g (t j) d -> t g j d", j=setting.width) for x in filled)
    return keys, values
