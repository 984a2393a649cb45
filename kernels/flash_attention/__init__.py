"""Exact softmax attention in tiles, with the logarithm of its denominator: no matrix of queries by keys is ever stored.

Two results over different keys merge into one by their denominators, and gradients flow through these too: that is what
ring attention and split decoding are made of.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from jaxtyping import Float

from common.ops import framework, operation

LONGEST = 2**31 - 1
"""Positions are 32-bit integers on every device."""


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("q", "k", "v"), tuning=("block",))
def flash_attention(
    q: Float[Any, "batch head seq dim"],
    k: Float[Any, "batch kv_head keys dim"],
    v: Float[Any, "batch kv_head keys value_dim"],
    *,
    causal: bool = False,
    window: int | None = None,
    sinks: int = 0,
    query_start: Any = 0,
    key_start: Any = 0,
    scale: float | None = None,
    block: tuple[int, int] | None = None,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """o_i = sum_j exp(s_ij - lse_i) v_j and lse_i = log sum_j exp(s_ij), s_ij = scale q_i k_j, over the keys j that i sees.

    Query i sits at position query_start + i and key j at key_start + j. A query sees every key; with ``causal`` those at
    its own position or before it; with ``window`` w of these the w newest (distance < w) and, besides, the keys at the
    first ``sinks`` positions of the whole sequence, not of k (the Lambda-shaped mask). A query that sees no key has o = 0
    and lse = -inf, and passes no gradient on, whatever arrives at it. Head h reads the key head h // (head / kv_head).

    Tiles of queries walk over tiles of keys with a running maximum m, denominator l and output:
    m' = max(m, max_j s), l <- e^(m-m') l + sum_j e^(s-m'), o <- e^(m-m') o + e^(s-m') v; at the end o / l and m + log l.
    Tiles that no query sees are left out. The gradient computes the weights p_ij = exp(s_ij - lse_i) again:
    dv = p^T do, ds_ij = p_ij (do_i v_j - do_i o_i + dlse_i), dq = scale ds k, dk = scale ds^T q.

    Two calls over the two halves of the keys give the whole: lse = logaddexp(lse_1, lse_2) and
    o = exp(lse_1 - lse) o_1 + exp(lse_2 - lse) o_2.

    PyTorch and JAX compute in float32, in float64 for float64 inputs; Triton and Pallas have no float64, and Triton has
    heads up to 128 wide. In bfloat16 and float16 Triton rounds the weights and their gradients to that type before they
    are multiplied.

    Args:
        q, k, v: queries, keys, values; float16, bfloat16, float32 or float64, all the same. head is a multiple of kv_head.
        causal: a query sees no key behind its own position.
        window: how many positions a query sees back, its own included; wants ``causal``. None is no limit.
        sinks: positions at the start of the sequence that are seen besides the window; wants ``window``.
        query_start, key_start: positions of the first query and key, integers >= 0. JAX: also traced.
        scale: None is dim ** -0.5.
        block: (queries, keys) of a tile; None lets the backend choose. The result does not depend on it. Pallas offers
            powers of two from 16 on, Triton (16, 16) beside its own choice.
        backend: "torch", "triton", "jax", "pallas" or "reference"; None chooses by the arrays' type and device.

    Returns:
        o (batch, head, seq, value_dim) in the dtype of q, and lse (batch, head, seq) in float32, or float64 for float64
        inputs; the natural logarithm.

    Raises:
        ValueError: shapes that do not fit, a window without causal, sinks without a window, positions below 0 or too
            large, a scale that is not finite, a block that is not offered.
        TypeError: integers, mixed dtypes, arrays of two frameworks, positions that are no integers.

    Source: Milakov and Gimelshein, arXiv 1805.02867 (online softmax); Dao, FlashAttention-2 (arXiv 2307.08691), algorithms
    1 and 2; sinks: Xiao et al., StreamingLLM (arXiv 2309.17453).
    """
    _check_arrays(q, k, v)
    _check_mask(causal, window, sinks)
    starts = {"query_start": (query_start, q.shape[2]), "key_start": (key_start, k.shape[2])}
    query_start, key_start = (_position(name, start, length) for name, (start, length) in starts.items())
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"flash_attention: scale is {scale}; wanted a finite number, or None for dim ** -0.5")
    if block is not None and (len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block)):
        raise ValueError(f"flash_attention: block is {block!r}; wanted two positive integers (queries, keys), or None")
    return flash_attention.operation(
        q, k, v, causal=causal, window=window, sinks=sinks, query_start=query_start, key_start=key_start, scale=scale,
        block=block, backend=backend,
    )  # fmt: skip


def _check_arrays(q: Any, k: Any, v: Any) -> None:
    given = {"q": q, "k": k, "v": v}
    wrong = [f"{name} is a {type(value).__name__}" for name, value in given.items() if framework(value) is None]
    if wrong:
        raise TypeError(f"flash_attention: {', '.join(wrong)}; wanted torch tensors, jax arrays or NumPy arrays")
    shapes = [tuple(value.shape) for value in given.values()]
    listed = ", ".join(map(str, shapes))
    fit = all(len(shape) == 4 for shape in shapes)
    fit = fit and shapes[0][0] == shapes[1][0] and shapes[1][:3] == shapes[2][:3] and shapes[0][3] == shapes[1][3]
    if not fit:
        raise ValueError(
            f"flash_attention: q, k, v have shapes {listed}; wanted q (batch, head, seq, dim), k (batch, kv_head, keys, dim) "
            "and v (batch, kv_head, keys, value_dim)"
        )
    heads, kv_heads = shapes[0][1], shapes[1][1]
    if heads % kv_heads if kv_heads else heads:
        raise ValueError(f"flash_attention: {heads} heads of q for {kv_heads} of k and v; wanted a multiple")
    if not (shapes[0][3] and shapes[2][3]):
        raise ValueError(f"flash_attention: q, k, v have shapes {listed}; wanted dim and value_dim of at least 1")
    kinds = [str(value.dtype).rpartition(".")[2] for value in given.values()]
    if any("float" not in kind for kind in kinds) or len(set(kinds)) != 1:
        raise TypeError(f"flash_attention: q, k, v have dtypes {', '.join(kinds)}; wanted one floating type, convert first")


def _check_mask(causal: bool, window: int | None, sinks: int) -> None:
    if window is not None and (not causal or window < 1):
        raise ValueError(f"flash_attention: window is {window}, causal is {causal}; wanted a window >= 1 with causal=True")
    if sinks < 0 or (sinks and window is None):
        raise ValueError(f"flash_attention: sinks is {sinks}, window is {window}; wanted sinks >= 0, and a window with them")


def _position(name: str, start: Any, length: int) -> Any:
    """A Python integer, or a traced one as it is."""
    if not isinstance(start, int) and framework(start) == "jax":
        if start.shape or not str(start.dtype).startswith(("int", "uint")):
            raise TypeError(f"flash_attention: {name} is {start.dtype}{list(start.shape)}; wanted an integer")
        return start
    try:
        start = operator.index(start)
    except TypeError:
        raise TypeError(f"flash_attention: {name} is {start!r}; wanted an integer") from None
    if not 0 <= start <= LONGEST - length:
        raise ValueError(f"flash_attention: {name} is {start}; wanted 0 .. {LONGEST - length} (positions have 31 bits)")
    return start
