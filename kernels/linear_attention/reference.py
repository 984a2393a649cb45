"""The definition: decayed causal linear attention as one masked product, on NumPy or torch, best in float64."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from einops import rearrange


def lightning_attention(q: Any, k: Any, v: Any, slope: Any, *, initial_state: Any = None, return_state: bool = False) -> Any:
    """O = (Q K^T . M) V + lambda^t Q S_0 with M_ts = lambda^(t-s) for t >= s; S_n = lambda^n S_0 + (lambda^(n-t) K)^T V."""
    xp = array_namespace(q)
    n = q.shape[2]
    rate = rearrange(slope, "head -> head 1 1")
    t = xp.arange(1, n + 1, dtype=q.dtype)
    age = rearrange(t, "t -> t 1") - t
    mask = xp.where(age >= 0, xp.exp(-rate * xp.abs(age)), xp.zeros_like(age))
    t = rearrange(t, "t -> t 1")
    o = (q @ rearrange(k, "b h s d -> b h d s") * mask) @ v
    state = rearrange(k * xp.exp(-rate * (n - t)), "b h t d -> b h d t") @ v
    if initial_state is not None:
        o = o + xp.exp(-rate * t) * (q @ initial_state)
        state = state + xp.exp(-rate * n) * initial_state
    return (o, state) if return_state else o


def lightning_step(q: Any, k: Any, v: Any, state: Any, slope: Any) -> tuple[Any, Any]:
    """S = lambda S_before + k^T v; o = q S."""
    xp = array_namespace(q)
    state = xp.exp(-rearrange(slope, "h -> h 1 1")) * state + rearrange(k, "b h d -> b h d 1") * rearrange(v, "b h e -> b h 1 e")
    return rearrange(rearrange(q, "b h d -> b h 1 d") @ state, "b h 1 e -> b h e"), state
