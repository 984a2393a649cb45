"""Numbers that a device holds, by the paper's tables 1 and 2, and the largest batch or length that fits.

The formulas are one text for Python's numbers, SymPy, NumPy, PyTorch and JAX. N devices, batch B, length L, width H, Z heads
of A = H / Z. A weight counts four times: itself, its gradient, and Adam's two moments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from papers.sequence_parallelism.encoder import Shape
from papers.sequence_parallelism.published import BERT_BASE, LINFORMER_ROWS

__all__ = ["BERT_BASE", "LINFORMER_ROWS", "attention", "device", "largest", "linformer", "mlp", "sparse_device"]


def mlp(how: str, devices: Any, tokens: Any, width: Any) -> Any:
    """Table 1: tensor parallelism 32 H^2/N + 4 BLH/N + BLH; sequence parallelism 32 H^2 + 5 BLH/N."""
    weights, activations = 32 * width**2, tokens * width
    if how == "tensor":
        return weights / devices + 4 * activations / devices + activations
    return weights + 5 * activations / devices


def attention(how: str, devices: Any, batch: Any, length: Any, width: Any, heads: Any) -> Any:
    """Table 2, with AZ = H: tensor 16 H^2/N + 4 BLH/N + BZL^2/N + BLH; sequence 16 H^2 + 4 BLH/N + BZL^2/N + BLH/N."""
    weights, activations = 16 * width**2, batch * length * width
    shared = 4 * activations / devices + batch * heads * length**2 / devices
    if how == "tensor":
        return weights / devices + shared + activations
    return weights + shared + activations / devices


def linformer(devices: Any, batch: Any, length: Any, width: Any, heads: Any, rows: Any) -> Any:
    """An attention whose keys and values are projected to a few rows, on a device that has its columns of both projections:
    as table 2, with B Z L rows/N weights of attention, the projected keys and values, and the projections."""
    activations = batch * length * width / devices
    return (
        16 * width**2
        + 8 * rows * length / devices
        + 5 * activations
        + batch * heads * length * rows / devices
        + 2 * batch * rows * width
    )


def device(
    how: str, devices: Any, batch: Any, length: Any, shape: Shape = BERT_BASE, logits: bool = False, whole: bool = False
) -> Any:
    """Numbers of a device for a model of BERT's kind: the tables' blocks and the embeddings.

    Tensor parallelism also shares out the table of words (Shoeybi et al. 2019, section 3); sequence parallelism has all. Both
    have a whole table of as many positions as the sequence is long.

    Args:
        logits: count those of the masked-token loss too, one for each word of the vocabulary and token.
        whole: a control: the sequence is not split.
    """
    count = 1 if whole and how == "sequence" else devices
    tokens, width = batch * length, shape.width
    layer = mlp(how, count, tokens, width) + attention(how, count, batch, length, width, shape.heads)
    words = shape.vocabulary * width / (devices if how == "tensor" else 1)
    embedded = tokens * width / (1 if how == "tensor" else count)
    said = tokens * shape.vocabulary / count if logits else 0
    return shape.depth * layer + 4 * (words + length * width) + embedded + said


def sparse_device(
    devices: Any, batch: Any, length: Any, shape: Shape = BERT_BASE, dense: bool = False, split_positions: bool = False
) -> Any:
    """Numbers of a device with Linformer attention and a table of as many positions as the sequence is long.

    Args:
        dense: a control: attention over all keys.
        split_positions: a device has the positions of its chunk alone; otherwise, as of all weights, the whole table.
    """
    width, heads = shape.width, shape.heads
    of_attention = (
        attention("sequence", devices, batch, length, width, heads)
        if dense
        else linformer(devices, batch, length, width, heads, LINFORMER_ROWS)
    )
    layer = mlp("sequence", devices, batch * length, width) + of_attention
    positions = length * width / (devices if split_positions else 1)
    return shape.depth * layer + 4 * (shape.vocabulary * width + positions) + batch * length * width / devices


def largest(numbers: Callable[[Any], Any], limit: Any, like: Any, xp: Any, top: int = 1 << 24) -> Any:
    """For each entry the largest whole n >= 0 with numbers(n) <= limit, by bisection; numbers grows with n.

    Args:
        like: an array of the result's shape, of whole numbers; xp: its namespace, such as torch or jax.numpy.
    """
    low, high = xp.zeros_like(like), xp.zeros_like(like) + top
    for _ in range(top.bit_length()):
        middle = (low + high + 1) // 2
        fits = numbers(middle) <= limit
        low, high = xp.where(fits, middle, low), xp.where(fits, high, middle - 1)
    return low
