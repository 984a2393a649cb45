"""The definition: softmax over the keys that a query sees, on NumPy or torch, best in float64."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from einops import rearrange


def flash_attention(
    q: Any, k: Any, v: Any, *, causal: bool = False, window: int | None = None, sinks: int = 0, query_start: int = 0,
    key_start: int = 0, scale: float | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """o_i = sum_j exp(s_ij - lse_i) v_j and lse_i = log sum_j exp(s_ij) over the keys that i sees."""
    xp = array_namespace(q)
    (batch, heads, seq, _), keys = q.shape, k.shape[2]
    if 0 in (heads, keys):
        return xp.zeros((batch, heads, seq, v.shape[3]), dtype=q.dtype), xp.full((batch, heads, seq), -xp.inf, dtype=q.dtype)
    # Heads that share keys stand beside each other.
    q = rearrange(q, "b (g r) i d -> b g r i d", g=k.shape[1])
    k, v = rearrange(k, "b g j d -> b g 1 j d"), rearrange(v, "b g j e -> b g 1 j e")
    at = rearrange(query_start + xp.arange(seq), "i -> i 1")
    key_at = key_start + xp.arange(keys)
    seen = (key_at <= at) | (not causal)
    if window is not None:
        seen = seen & ((at - key_at < window) | (key_at < sinks))
    any_seen = xp.any(seen, axis=-1)[:, None]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (q @ rearrange(k, "b g r j d -> b g r d j"))
    top = xp.max(xp.where(seen, scores, -xp.inf), axis=-1)[..., None]
    top = xp.where(any_seen, top, xp.zeros_like(top))
    # Hidden scores are replaced before the exponential, so that neither it nor its gradient overflows.
    weights = xp.where(seen, xp.exp(xp.where(seen, scores, top) - top), xp.zeros_like(scores))
    total = xp.where(any_seen, xp.sum(weights, axis=-1)[..., None], xp.ones_like(top))
    o = (weights / total) @ v
    lse = xp.where(any_seen, top + xp.log(total), -xp.inf)
    return rearrange(o, "b g r i e -> b (g r) i e"), rearrange(lse, "b g r i 1 -> b (g r) i")
