"""The definition: every input of a group times its weight, summed, and the outputs dealt out."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from einops import rearrange


def group_pointwise_shuffle(x: Any, weight: Any) -> Any:
    """y[n, j G + g] = sum_i x[n, g I + i] w[g, i, j]."""
    xp = array_namespace(x)
    inputs = rearrange(x, "... (group each) -> ... group each 1", group=weight.shape[0])
    return rearrange(xp.sum(inputs * weight, axis=-2), "... group each -> ... (each group)")
