"""Linformer's attention over chunks: keys and values are projected along the length to a few rows, which all ranks share.

With E of (rows, L), of which rank n holds the columns of its chunk: k' = sum_n E_n k_n, v' = sum_n F_n v_n, both of
(rows, A), and o_n = softmax(q_n k'^T / sqrt(A)) v'. The sums are all that is sent. Sources: Wang et al. 2020 (Linformer),
section 4; Li et al. 2023, section 4.5.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from common.distributed import Group
from common.distributed.differentiable import copy_to, reduce_from


def linformer_attention(
    q: Float[Tensor, "batch head chunk dim"],
    k: Float[Tensor, "batch head chunk dim"],
    v: Float[Tensor, "batch head chunk dim"],
    key_columns: Float[Tensor, "rows chunk"],
    value_columns: Float[Tensor, "rows chunk"],
    group: Group | None = None,
) -> Float[Tensor, "batch head chunk dim"]:
    """This rank's rows of the output; without a group the chunk is the whole sequence. Differentiable in all arrays.

    Raises:
        ValueError: the projections have no column for each token of the chunk.
    """
    for name, columns in (("key", key_columns), ("value", value_columns)):
        if columns.shape[1] != k.shape[2]:
            raise ValueError(
                f"the {name} projection has {columns.shape[1]} columns, the chunk {k.shape[2]} tokens; wanted one for each"
            )
    keys, values = _shared(key_columns @ k, group), _shared(value_columns @ v, group)
    return (q * q.shape[-1] ** -0.5 @ keys.mT).softmax(-1) @ values


def _shared(x: Tensor, group: Group | None) -> Tensor:
    """The sum over ranks, which each rank then uses in its own way, so that the gradient is a sum too."""
    return x if group is None else copy_to(reduce_from(x, group), group)
