"""Attention in tiles in Pallas: a kernel for o and lse, one for dq, one for dk and dv.

A program has one tile of queries (of keys, for dk and dv) and loops over the tiles of the other side that it meets, which
it reads from the whole k and v (q and do) of its head: on a TPU these lie in its vector memory, so it takes some thousand
tokens there, not more. dk and dv are found for every head of q and then added up over those that share keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plt
from jaxtyping import Float

from common.ops import Exported

from .jax_impl import Setting, nothing, offsets, prepared, seen, visible, whole

BLOCK = 32, 32
LOWEST = -1e38


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
    if q.dtype == jnp.float64:
        raise ValueError("flash_attention: backend 'pallas' computes in float32, got float64; use backend='jax'")
    rows, width = block or BLOCK
    if min(rows, width) < 16 or rows & (rows - 1) or width & (width - 1):
        raise ValueError(f"flash_attention: backend 'pallas' offers blocks of powers of two from 16 on, got {block}")
    batch, heads, seq, _ = q.shape
    keys = k.shape[2]
    if 0 in (batch, heads, seq, keys):
        return nothing(q, v)
    setting = Setting(causal, window, scale, rows, width, keys)
    folded = (rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v))
    o, lse = _attention(*folded, offsets(sinks, query_start, key_start), setting, jax.default_backend())
    return rearrange(o, "(b h) i e -> b h i e", b=batch), rearrange(lse, "(b h) i -> b h i", b=batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q: Array, k: Array, v: Array, where: Array, setting: Setting, platform: str) -> tuple[Array, Array]:
    o, lse = _call("forward", (q,), (k, v), where, setting, platform)
    return o[:, : q.shape[1], : v.shape[2]].astype(q.dtype), lse[:, : q.shape[1], 0]


def _forward(q: Array, k: Array, v: Array, where: Array, setting: Setting, platform: str) -> Any:
    o, lse = _attention(q, k, v, where, setting, platform)
    return (o, lse), (q, k, v, where, o, lse)


def _backward(setting: Setting, platform: str, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    q, k, v, where, o, lse = saved
    level, do, offset = prepared(o, lse, *cotangents)
    queries = q, do.astype(v.dtype), level[..., None], offset[..., None]
    (dq,) = _call("dq", queries, (k, v), where, setting, platform)
    dk, dv = _call("dkdv", queries, (k, v), where, setting, platform)
    dq = dq[:, : q.shape[1], : q.shape[2]].astype(q.dtype)
    dk, dv = (reduce(x, "(g r) j d -> g j d", "sum", g=k.shape[0]) for x in (dk, dv))
    return dq, dk[:, : k.shape[1], : k.shape[2]].astype(k.dtype), dv[:, : v.shape[1], : v.shape[2]].astype(v.dtype), None


_attention.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=("name", "setting", "platform"))
def _call(
    name: str, queries: tuple[Array, ...], keys: tuple[Array, ...], where: Array, setting: Setting, platform: str
) -> tuple[Array, ...]:
    """Arrays (g, queries or keys, d) in float32, filled up to whole tiles as the arguments are."""
    seq, repeats = queries[0].shape[1], queries[0].shape[0] // keys[0].shape[0]
    # Rows that are not there: their level makes all of their weights exp(-inf).
    ends = (0.0, 0.0, jnp.inf, 0.0)
    queries = tuple(_filled(x, setting.rows, platform, end) for x, end in zip(queries, ends, strict=False))
    k, v = (_filled(x, setting.width, platform, 0.0) for x in keys)
    heads = queries[0].shape[0]

    def spec(x: Array, tile: int, shared: int = 1) -> pl.BlockSpec:
        if tile:
            return pl.BlockSpec((1, tile, x.shape[2]), lambda g, i: (lax.div(g, shared), i, 0))
        return pl.BlockSpec((1, *x.shape[1:]), lambda g, i: (lax.div(g, shared), 0, 0))

    walks_keys = name != "dkdv"
    rows, width = (setting.rows, 0) if walks_keys else (0, setting.width)
    count = queries[0].shape[1] // setting.rows if walks_keys else k.shape[1] // setting.width
    widths = {"forward": (v.shape[2], 1), "dq": (k.shape[2],), "dkdv": (k.shape[2], v.shape[2])}[name]
    length, tile = (queries[0].shape[1], setting.rows) if walks_keys else (k.shape[1], setting.width)
    kernels: dict[str, Callable[..., None]] = {
        "forward": _forward_kernel,
        "dq": _dq_kernel,
        "dkdv": functools.partial(_dkdv_kernel, seq=seq),
    }
    found = pl.pallas_call(
        functools.partial(kernels[name], setting=setting),
        grid=(heads, count),
        in_specs=[
            # A TPU reads single numbers from its scalar memory.
            pl.BlockSpec(memory_space=pltpu.SMEM) if platform == "tpu" else pl.BlockSpec(),
            *(spec(x, rows) for x in queries), spec(k, width, repeats), spec(v, width, repeats),
        ],
        out_specs=[pl.BlockSpec((1, tile, d), lambda g, i: (g, i, 0)) for d in widths],
        out_shape=[jax.ShapeDtypeStruct((heads, length, d), jnp.float32) for d in widths],
        interpret=platform == "cpu",
        # Named, so that GPUs are reached through Triton: the other way knows no products.
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=1) if platform == "gpu" else None,
    )(where, *queries, k, v)  # fmt: skip
    return tuple(found)


def _forward_kernel(where: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, *, setting: Setting) -> None:
    i = pl.program_id(1)
    rows, width = setting.rows, setting.width
    queries, at = q[0].astype(jnp.float32), i * rows + where[0] + lax.broadcasted_iota(jnp.int32, (rows, width), 0)
    count, tile_of = visible(i, where, setting)

    def step(s: Any, carried: Any) -> Any:
        top, total, out = carried
        keys, values, key = _read(k, v, tile_of(s), width, (rows, width), 1)
        scores = jnp.where(seen(at, key, where, setting), _dot(queries, keys, (1, 1)) * setting.scale, -jnp.inf)
        new = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
        decay, weights = jnp.exp(top - new), jnp.exp(scores - new)
        return new, total * decay + jnp.sum(weights, axis=1, keepdims=True), out * decay + _dot(weights, values, (1, 0))

    start = jnp.full((rows, 1), LOWEST, jnp.float32), jnp.zeros((rows, 1), jnp.float32), jnp.zeros(o.shape[1:], jnp.float32)
    top, total, out = lax.fori_loop(0, count, step, start)
    # A query that saw a key has at least its largest weight, 1.
    some = jnp.where(total > 0, total, 1.0)
    o[0], lse[0] = out / some, jnp.where(total > 0, top + jnp.log(some), -jnp.inf)


def _dq_kernel(where: Any, q: Any, do: Any, level: Any, offset: Any, k: Any, v: Any, dq: Any, *, setting: Setting) -> None:
    i = pl.program_id(1)
    rows, width = setting.rows, setting.width
    queries, douts, levels, offsets = (x[0].astype(jnp.float32) for x in (q, do, level, offset))
    at = i * rows + where[0] + lax.broadcasted_iota(jnp.int32, (rows, width), 0)
    count, tile_of = visible(i, where, setting)

    def step(s: Any, found: Any) -> Any:
        keys, values, key = _read(k, v, tile_of(s), width, (rows, width), 1)
        scores = jnp.where(seen(at, key, where, setting), _dot(queries, keys, (1, 1)) * setting.scale, -jnp.inf)
        dscores = jnp.exp(scores - levels) * (_dot(douts, values, (1, 1)) + offsets)
        return found + _dot(dscores, keys, (1, 0))

    dq[0] = lax.fori_loop(0, count, step, jnp.zeros(dq.shape[1:], jnp.float32)) * setting.scale


def _dkdv_kernel(
    where: Any, q: Any, do: Any, level: Any, offset: Any, k: Any, v: Any, dk: Any, dv: Any, *, setting: Setting, seq: int
) -> None:
    j = pl.program_id(1)
    rows, width = setting.rows, setting.width
    keys, values = k[0].astype(jnp.float32), v[0].astype(jnp.float32)
    key = j * width + lax.broadcasted_iota(jnp.int32, (rows, width), 1)
    first, last = _meeting(j, where, setting, seq)

    def step(i: Any, found: Any) -> Any:
        queries, douts, row = _read(q, do, i, rows, (rows, width), 0)
        levels, offsets = (x[0, pl.ds(i * rows, rows), :] for x in (level, offset))
        shown = seen(row + where[0], key, where, setting)
        weights = jnp.exp(jnp.where(shown, _dot(queries, keys, (1, 1)) * setting.scale, -jnp.inf) - levels)
        dscores = weights * (_dot(douts, values, (1, 1)) + offsets)
        return found[0] + _dot(dscores, queries, (0, 0)), found[1] + _dot(weights, douts, (0, 0))

    start = jnp.zeros(dk.shape[1:], jnp.float32), jnp.zeros(dv.shape[1:], jnp.float32)
    dkeys, dvalues = lax.fori_loop(first, last, step, start)
    dk[0], dv[0] = dkeys * setting.scale, dvalues


def _meeting(j: Any, where: Any, setting: Setting, seq: int) -> tuple[Any, Any]:
    """The first and the end of the tiles of queries that see something of tile j of keys."""
    first: Any = 0
    end: Any = seq
    if setting.causal:
        first = whole(jnp.clip(j * setting.width - where[0], 0, seq), setting.rows)
    if setting.window is not None:
        within = jnp.clip((j + 1) * setting.width - 1 + setting.window - where[0], 0, seq)
        end = jnp.where(j * setting.width < where[1], seq, within)
    return first, whole(end + setting.rows - 1, setting.rows)


def _read(a: Any, b: Any, tile: Any, size: int, shape: tuple[int, int], axis: int) -> tuple[Any, Any, Any]:
    """One tile of the two and the places of its rows, along an axis of the scores."""
    at = (0, pl.ds(tile * size, size), slice(None))
    return a[at].astype(jnp.float32), b[at].astype(jnp.float32), tile * size + lax.broadcasted_iota(jnp.int32, shape, axis)


def _dot(a: Any, b: Any, over: tuple[int, int]) -> Any:
    contracted = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(a, b, contracted, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _filled(x: Array, tile: int, platform: str, end: float) -> Array:
    """Whole tiles; on GPUs widths are powers of two of at least 16 (single columns stay)."""
    width = x.shape[2]
    wide = max(16, 1 << (width - 1).bit_length()) if platform == "gpu" and width > 1 else width
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile), (0, wide - width)), constant_values=end)


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for kind, d in (("float32", 64), ("bfloat16", 64), ("bfloat16", 128)):
            setting = Setting(True, 100, 0.125, 128 if name == "tpu" else 32, 128 if name == "tpu" else 32, 256)
            q, k, row = ((8, 256, d), kind), ((4, 256, d), kind), ((8, 256, 1), "float32")
            for kernel, queries in (("forward", (q,)), ("dq", (q, q, row, row)), ("dkdv", (q, q, row, row))):
                function = functools.partial(_flat, name=kernel, setting=setting, platform=platform)
                yield Exported(f"{kernel}-{kind}-d{d}-{name}", function, (*queries, k, k, ((2,), "int32")), (name,))


def _flat(*arrays: Array, name: str, setting: Setting, platform: str) -> Any:
    *queries, k, v, where = arrays
    return _call(name, tuple(queries), (k, v), where, setting, platform)
