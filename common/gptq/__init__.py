"""Rounding the weights of a linear layer to few bits: to the nearest, and column by column with the error passed on.

GPTQ (Frantar et al., arXiv 2210.17323) minimises ||(W - Q) X|| over the codes Q: columns of W are rounded one after the
other, and what rounding a column adds to the output is taken back, as far as possible, by those that are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.ops import framework, readable

__all__ = ["CLIPS", "ORDERS", "Hessian", "Rounded", "gptq", "nearest"]

CLIPS = ("none", "error", "hessian")
ORDERS = ("natural", "activation")
LARGEST = 65504.0
"""Of float16, which scales are kept in."""


class Hessian:
    """H = 2 / n sum x x^T over the n inputs of a layer: the second derivative of its squared output error."""

    def __init__(self) -> None:
        self.total: Any = None
        self.count = 0

    def add(self, x: Any) -> None:
        """Add inputs, (..., k): every vector weighs the same, whatever the shapes they come in.

        Raises:
            ValueError: another k than before.
        """
        flat = x.reshape(-1, x.shape[-1])
        if self.total is not None and self.total.shape[-1] != flat.shape[-1]:
            raise ValueError(f"Hessian: inputs of {flat.shape[-1]} features after ones of {self.total.shape[-1]}")
        product = flat.T @ flat
        self.total = product if self.total is None else self.total + product
        self.count += flat.shape[0]

    @property
    def value(self) -> Any:
        """(k, k), in the dtype of the inputs.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("Hessian: no inputs were added; call add() with inputs of the layer first")
        return self.total * (2.0 / self.count)


@dataclass(frozen=True)
class Rounded:
    """Weights as codes and scales: w = code * scale.

    Attributes:
        codes: int8 (..., rows, k), from -2^(bits - 1) to 2^(bits - 1) - 1.
        scales: float16 (..., rows, k / group).
    """

    codes: Any
    scales: Any

    def dense(self) -> Any:
        """The weights in float32, (..., rows, k)."""
        return _backend(self.codes).dense(self.codes, self.scales)


def nearest(weights: Any, *, bits: int = 4, group: int = 128, clip: str = "none") -> Rounded:
    """Round each weight to the nearest code: q = clamp(round(w / s)), with one s for ``group`` weights of a row.

    s = 2 r max |w| / (2^bits - 1), rounded to float16 before the weights are divided by it.

    Args:
        weights: (..., rows, k) of torch or JAX, rows are outputs.
        bits: 2 to 8.
        group: weights along k that share a scale; it divides k; -1 for the whole row.
        clip: "none", r = 1; "error", the r of 1.00, 0.99 .. 0.26 with the least squared error of the group.

    Raises:
        ValueError: options that are not offered, a group that does not divide k, weights with NaN or infinity.
        TypeError: arrays of neither framework.
    """
    group = _check("nearest", weights, bits, group)
    if clip not in CLIPS[:2]:
        raise ValueError(f"nearest: clip is {clip!r}; wanted none or error (hessian needs a Hessian: call gptq)")
    return Rounded(*_backend(weights).nearest(weights, bits, group, clip))


def gptq(
    weights: Any,
    hessian: Any,
    *,
    bits: int = 4,
    group: int = 128,
    damping: float = 0.1,
    order: str = "natural",
    clip: str = "hessian",
) -> Rounded:
    """Round the columns in turn and pass each one's error on to those not yet rounded.

    With U the upper Cholesky factor of (H + damping mean(diag H) I)^-1 = U^T U, for column i:
    e = (w_i - s q_i) / U_ii, then w_j -= e U_ij for j > i, in blocks (arXiv 2210.17323, algorithm 1).

    Args:
        weights: (..., rows, k), rows are outputs; leading axes are rounded at once (experts of one shape).
        hessian: (..., k, k) symmetric, see :class:`Hessian`; its dtype is the one that is computed in.
        bits, group: as for :func:`nearest`.
        damping: the share of the mean of the diagonal that is added to it.
        order: "natural", columns as they stand, each group's scale found when its turn comes; "activation", by falling
            diagonal of H, with the scales of all groups found before (so that groups stay contiguous).
        clip: as for :func:`nearest`, and "hessian": the r with the least ||(w - s q) U_g^-1||^2, U_g the group's
            part of U, which is the group's own error after the passing on (MARLIN, arXiv 2408.11743, section 3.5).

    Raises:
        ValueError: as :func:`nearest`; a Hessian of another shape; one that stays not positive definite after damping.
    """
    group = _check("gptq", weights, bits, group)
    k = weights.shape[-1]
    if tuple(hessian.shape) != (*weights.shape[:-2], k, k):
        raise ValueError(
            f"gptq: hessian {tuple(hessian.shape)} for weights {tuple(weights.shape)}; wanted {(*weights.shape[:-2], k, k)}"
        )
    if order not in ORDERS or clip not in CLIPS:
        raise ValueError(f"gptq: order {order!r}, clip {clip!r}; wanted one of {', '.join(ORDERS)} and of {', '.join(CLIPS)}")
    if order == "activation" and clip == "hessian":
        raise ValueError("gptq: clip 'hessian' follows the natural order of columns; take clip 'error' with order 'activation'")
    if damping < 0:
        raise ValueError(f"gptq: damping is {damping}; wanted 0 or more (0.1)")
    backend = _backend(weights)
    columns, upper = backend.prepare(hessian, damping, order)
    if readable(upper) and not bool(np.isfinite(np.asarray(upper)).all()):
        raise ValueError(
            f"gptq: the Hessian is not positive definite with damping {damping}; raise the damping or add more inputs"
        )
    return Rounded(*backend.gptq(weights, upper, columns, bits, group, clip))


def ratios() -> np.ndarray:
    """The shares of the largest weight that a clip search tries."""
    return 1.0 - np.arange(75) / 100.0


def _check(name: str, weights: Any, bits: int, group: int) -> int:
    if framework(weights) not in ("torch", "jax"):
        raise TypeError(f"{name}: weights are a {type(weights).__name__}; wanted a torch tensor or a jax array")
    if len(weights.shape) < 2:
        raise ValueError(f"{name}: weights have shape {tuple(weights.shape)}; wanted (..., rows, k)")
    if not 2 <= bits <= 8:
        raise ValueError(f"{name}: bits is {bits!r}; wanted 2 to 8")
    k = weights.shape[-1]
    group = k if group == -1 else group
    if group < 1 or k % group:
        raise ValueError(f"{name}: group {group} does not divide k = {k}; wanted a divisor, or -1 for whole rows")
    if readable(weights) and weights.shape[-2] and not float(abs(weights).max()) <= LARGEST * (2**bits - 1) / 2:
        raise ValueError(f"{name}: weights have NaN, infinity or a scale above float16; find out where they come from")
    return group


def _backend(array: Any) -> Any:
    if framework(array) == "torch":
        from . import torch_impl as backend
    else:
        from . import jax_impl as backend  # type: ignore[no-redef]
    return backend
