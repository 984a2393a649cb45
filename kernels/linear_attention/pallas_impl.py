"""Decayed causal linear attention as one Pallas kernel, used forwards and, with the roles exchanged, for every gradient.

dq reads dO against V and sums K, forwards in time; dk reads V against dO and sums Q, and dv reads K against Q and sums dO,
both backwards in time. Each is the same walk over blocks with one state, so the backward launches the forward's kernel. On
a TPU a program holds one head's whole q, k, v and o in its vector memory: several thousand tokens, not more.
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

BLOCK = 32


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
    if variant != "loop":
        raise ValueError(f"lightning_attention: backend 'pallas' offers variant loop, got {variant}; use backend='jax'")
    if q.dtype == jnp.float64:
        raise ValueError("lightning_attention: backend 'pallas' computes in float32, got float64; use backend='jax'")
    batch, heads, _, d = q.shape
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, d, v.shape[-1]), jnp.float32)
    state, o = initial_state.astype(jnp.float32), jnp.zeros_like(v)
    if o.size and d:
        rate = jnp.tile(lax.stop_gradient(slope).astype(jnp.float32), batch)
        folded = (rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v, state))
        found = _attention(*folded, rate, block or BLOCK, jax.default_backend())
        o, state = (rearrange(x, "(b h) n e -> b h n e", b=batch) for x in found)
    return (o, state) if return_state else o


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(q: Array, k: Array, v: Array, state: Array, rate: Array, block: int, platform: str) -> tuple[Array, Array]:
    o, after = _walk(q, k, v, state, rate, block, platform)
    return o.astype(v.dtype), after


def _forward(q: Array, k: Array, v: Array, state: Array, rate: Array, block: int, platform: str) -> Any:
    return _attention(q, k, v, state, rate, block, platform), (q, k, v, state, rate)


def _backward(block: int, platform: str, saved: Any, cotangents: Any) -> tuple[Array, ...]:
    q, k, v, state, rate = saved
    do, dstate = cotangents
    run = functools.partial(_walk, rate=rate, block=block, platform=platform)
    dq, _ = run(do, v, k, state.mT)
    dk, _ = run(v, do, q, dstate.mT, reverse=True)
    dv, dfirst = run(k, q, do, dstate, reverse=True)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dfirst, jnp.zeros_like(rate)


_attention.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=("block", "platform", "reverse"))
def _walk(
    q: Array, k: Array, v: Array, state: Array, rate: Array, block: int, platform: str, reverse: bool = False
) -> tuple[Array, Array]:
    """o (g, n, e) in float32 and the last state, of arrays (g, n, d), (g, n, d), (g, n, e), (g, d, e)."""
    (g, n, d), e = q.shape, v.shape[-1]
    rows, wide, narrow = -(-n // block) * block, _padded(d, platform), _padded(e, platform)
    # A GPU's program keeps a slice of the state in registers; a TPU's core holds all of it and wants whole lanes.
    part = min(narrow, 32) if platform == "gpu" else narrow
    q, k, v = (jnp.pad(x, ((0, 0), (0, rows - n), (0, to - x.shape[2]))) for x, to in ((q, wide), (k, wide), (v, narrow)))
    state = jnp.pad(state, ((0, 0), (0, wide - d), (0, narrow - e)))
    long, across = pl.BlockSpec((1, rows, wide), lambda i, j: (i, 0, 0)), pl.BlockSpec((1, rows, part), lambda i, j: (i, 0, j))
    square, single = pl.BlockSpec((1, wide, part), lambda i, j: (i, 0, j)), pl.BlockSpec((1, 1, 1), lambda i, j: (i, 0, 0))
    o, after = pl.pallas_call(
        functools.partial(_walk_kernel, n=n, block=block, reverse=reverse),
        grid=(g, narrow // part),
        in_specs=[long, long, across, square, single],
        out_specs=[across, square],
        out_shape=[jax.ShapeDtypeStruct(v.shape, jnp.float32), jax.ShapeDtypeStruct(state.shape, jnp.float32)],
        interpret=platform == "cpu",
        # Named, so that GPUs are reached through Triton: the other way knows no products.
        compiler_params=plt.CompilerParams(num_warps=8, num_stages=1) if platform == "gpu" else None,
    )(q, k, v, state, rate[:, None, None])
    return o[:, :n, :e], after[:, :d, :e]


def _walk_kernel(q: Any, k: Any, v: Any, first: Any, rate: Any, o: Any, last: Any, *, n: int, block: int, reverse: bool) -> None:
    """One head: the state is carried over the blocks, forwards or backwards in time."""
    slope, blocks = rate[0, 0, 0], -(-n // block)
    row = lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    age = lax.broadcasted_iota(jnp.int32, (block, block), 0) - lax.broadcasted_iota(jnp.int32, (block, block), 1)
    age = -age if reverse else age
    # Differences of exponents alone: lambda^-B overflows for steep heads.
    mask = jnp.where(age >= 0, jnp.exp(-slope * jnp.maximum(age, 0).astype(jnp.float32)), 0.0)
    since = jnp.exp(-slope * (row + 1).astype(jnp.float32))

    def step(i: Any, state: Any) -> Any:
        start = (blocks - 1 - i if reverse else i) * block
        length = jnp.minimum(n - start, block)
        until = jnp.exp(-slope * jnp.maximum(length - 1 - row, 0).astype(jnp.float32))
        read, write = (until, since) if reverse else (since, until)
        at = (0, pl.ds(start, block), slice(None))
        queries, keys, values = (x[at].astype(jnp.float32) for x in (q, k, v))
        scores = _dot(queries, keys, (1, 1)) * mask
        o[at] = _dot(scores, values, (1, 0)) + _dot(queries * read, state, (1, 0))
        return state * jnp.exp(-slope * length.astype(jnp.float32)) + _dot(keys * write, values, (0, 0))

    last[0] = lax.fori_loop(0, blocks, step, first[0])


def _dot(a: Any, b: Any, over: tuple[int, int]) -> Any:
    contracted = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(a, b, contracted, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _padded(width: int, platform: str) -> int:
    """GPUs want powers of two of at least 16; the others take any width as it is."""
    return max(16, 1 << (width - 1).bit_length()) if platform == "gpu" else width


def exports() -> Iterator[Exported]:
    for platform, name in (("gpu", "cuda"), ("tpu", "tpu")):
        for d in (64, 128):
            for kind in ("float32", "bfloat16"):
                arrays = (((8, 256, d), kind),) * 3 + (((8, d, d), "float32"), ((8,), "float32"))
                for reverse in (False, True):
                    function = functools.partial(_walk, block=BLOCK, platform=platform, reverse=reverse)
                    yield Exported(f"walk{'-reverse' if reverse else ''}-{kind}-d{d}-{name}", function, arrays, (name,))
