"""Two of every four: the sparsity that tensor cores since Ampere multiply at twice the rate, found, stored and multiplied.

Of each aligned group of four weights along the last axis (the one that a product sums over) two are kept; in the paired
form, which the hardware asks of 4-bit weights, two of the four pairs in each aligned group of eight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt16

from common.ops import framework, operation, readable

FLOATS = ("float16", "bfloat16", "float32", "float64")


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def mask(weights: Shaped[Any, "rows k"], *, paired: bool = False, backend: str | None = None) -> Bool[Any, "rows k"]:
    """Which weights to keep: of each group of four the two of largest magnitude.

    This is the best of the six patterns 1100, 1010, 1001, 0110, 0101, 0011 by the sum of the kept magnitudes, in exact
    arithmetic, and of equally good ones the first. ``paired``: the four are pairs of neighbours, whose magnitudes are
    added first (in float32, in float64 for float64; magnitudes below the smallest normal number count as zero in it).

    Args:
        weights: (rows, k) of float16, bfloat16, float32, float64 or int8.
        paired: two of four pairs in each group of eight.

    Returns:
        booleans (rows, k), true where a weight is kept.

    Raises:
        ValueError: k that is no multiple of 4 (8 if paired); NaN (found on the CPU and outside tracing alone).
        TypeError: another dtype.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks (arXiv 2104.08378), section 3 and 4.1.
    """
    _check_matrix("mask", "weights", weights, (*FLOATS, "int8"))
    _check_groups("mask", weights.shape[1], paired)
    if _dtype(weights) != "int8" and readable(weights) and bool((weights != weights).any()):
        wrong = weights != weights
        row, column = np.argwhere(np.asarray(wrong))[0]
        raise ValueError(f"mask: the weight in row {row}, column {column} is NaN; find out where it comes from")
    return mask.operation(weights, paired=paired, backend=backend)


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def pack(
    weights: Shaped[Any, "rows k"], mask: Bool[Any, "masked_rows masked_k"], *, paired: bool = False, backend: str | None = None
) -> tuple[Shaped[Any, "rows half"], UInt16[Any, "rows words"]]:
    """The kept weights side by side, and two bits for each (for each pair) that say where it stood.

    In group g of a row let i_0 < i_1 be the places, of 0 to 3, of what is kept. Bits 4 (g mod 4) and above of word g // 4
    hold i_0 + 4 i_1; a row begins a new word, and bits behind its last group are zero. Values are copied bit for bit.
    Weights of 4 bits: a pair of them is one byte, so a paired matrix of 4-bit weights is packed as a matrix of k / 2 bytes
    that is not paired (see :func:`matmul`).

    Args:
        weights: (rows, k), any of float16, bfloat16, float32, float64, int8, uint8.
        mask: exactly two of every group are true; see :func:`mask`.

    Returns:
        values (rows, k / 2) in the dtype of the weights, and words uint16 (rows, ceil(groups / 4)).

    Raises:
        ValueError: a mask that does not fit the weights or the pattern, with the first group that is wrong (on the CPU and
            outside tracing alone; else what is stored of such a group is unspecified).
        TypeError: other dtypes.

    Source: NVIDIA PTX ISA, mma.sp, sparsity metadata: two bits an entry, the lower place in the lower bits.
    """
    _check_matrix("pack", "weights", weights, (*FLOATS, "int8", "uint8"))
    _check_matrix("pack", "mask", mask, ("bool",))
    _check_groups("pack", weights.shape[1], paired)
    if tuple(mask.shape) != tuple(weights.shape):
        raise ValueError(f"pack: a mask of shape {tuple(mask.shape)} for weights of shape {tuple(weights.shape)}; make it anew")
    if readable(mask):
        _check_pattern(np.asarray(mask), paired)
    return pack.operation(weights, mask, paired=paired, backend=backend)


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def unpack(
    values: Shaped[Any, "rows half"], meta: UInt16[Any, "rows words"], *, k: int, paired: bool = False, backend: str | None = None
) -> Shaped[Any, "rows k"]:
    """The inverse of :func:`pack`: the weights, with zeros where none was kept.

    Args:
        k: columns of the weights: twice those of the values.

    Raises:
        ValueError: values or words that are too many or too few for k; k that is no multiple of 4 (8 if paired).
        TypeError: other dtypes than :func:`pack` returns.
    """
    _check_matrix("unpack", "values", values, (*FLOATS, "int8", "uint8"))
    _check_meta("unpack", meta, values.shape[0], k, paired)
    if values.shape[1] * 2 != k:
        raise ValueError(
            f"unpack: {values.shape[1]} values in a row; {k} columns have {k // 2} of them, pass the k that was packed"
        )
    return unpack.operation(values, meta, k=k, paired=paired, backend=backend)


@operation(backends=("torch", "triton", "jax", "pallas"))
def matmul(
    x: Shaped[Any, "*batch k"],
    values: Shaped[Any, "rows stored"],
    meta: UInt16[Any, "rows words"],
    scale: Shaped[Any, " scales"] | None = None,
    *,
    paired: bool = False,
    backend: str | None = None,
) -> Shaped[Any, "*batch rows"]:
    """y_r = s_r sum_i W_ri x_i with W as :func:`pack` has stored it: the packed bytes are all that is read of it.

    Values are in the dtype of x, or int8, or 4-bit numbers from -8 to 7 in bytes (uint8, two's complement, the first of two
    in the low half). Products are added in float32 at least. For inference: no gradient flows through it. Whether a weight that was dropped makes
    NaN of an x that is not finite is left open.

    Args:
        x: float16, bfloat16, float32 or float64 (PyTorch and JAX backends alone); k features in its last axis.
        values: (rows, k / 2), or (rows, k / 4) bytes of 4-bit numbers.
        meta: as :func:`pack` returns it.
        scale: a factor for each row, in the dtype of x; None: 1.
        paired: whether the values were packed so.

    Returns:
        (*batch, rows) in the dtype of x.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: values of other dtypes.
    """
    kind = _dtype(x)
    if kind not in FLOATS or not x.shape:
        raise TypeError(f"matmul: x is {_described(x)}; wanted floating point with at least one axis")
    _check_matrix("matmul", "values", values, (kind, "int8", "uint8"))
    k = x.shape[-1]
    _check_meta("matmul", meta, values.shape[0], k, paired)
    each = 4 if _dtype(values) == "uint8" else 2
    if values.shape[1] * each != k:
        raise ValueError(
            f"matmul: {values.shape[1]} stored {_dtype(values)} in a row; x has {k} features, which are {k // each} of them"
        )
    if scale is not None and (tuple(scale.shape) != (values.shape[0],) or _dtype(scale) != kind):
        raise ValueError(f"matmul: scale is {_described(scale)}; wanted {kind} ({values.shape[0]},), one for each row")
    return matmul.operation(x, values, meta, scale, paired=paired, backend=backend)


def _check_matrix(name: str, what: str, array: Any, dtypes: tuple[str, ...]) -> None:
    if framework(array) is None or _dtype(array) not in dtypes:
        raise TypeError(f"{name}: {what} is {_described(array)}; wanted {', '.join(dtypes)}")
    if len(array.shape) != 2:
        raise ValueError(f"{name}: {what} is {_described(array)}; wanted two axes, outputs and inputs")


def _check_groups(name: str, k: int, paired: bool) -> None:
    group = 8 if paired else 4
    if k % group:
        raise ValueError(f"{name}: {k} columns are no whole groups of {group}; pad them with zeros, or leave the matrix dense")


def _check_meta(name: str, meta: Any, rows: int, k: int, paired: bool) -> None:
    _check_groups(name, k, paired)
    _check_matrix(name, "meta", meta, ("uint16",))
    words = -(-k // (32 if paired else 16))
    if tuple(meta.shape) != (rows, words):
        raise ValueError(f"{name}: meta has shape {tuple(meta.shape)}; {rows} rows of {k} columns have ({rows}, {words})")


def _check_pattern(mask: np.ndarray, paired: bool) -> None:
    """Raises with the first group in which not exactly two (pairs) are kept."""
    kept = np.ascontiguousarray(mask).view(np.uint8)
    if not kept.size:
        return
    if paired:
        pairs = kept.view(np.uint16)
        torn = (pairs != 0) & (pairs != 0x0101)
        kept = (pairs & 1).astype(np.uint8)
    # The four bytes of a group are added up in the highest byte of a product.
    counts = (kept.view(np.uint32) * np.uint32(0x01010101)) >> np.uint32(24)
    wrong = (counts != 2) | torn.reshape(*counts.shape, 4).any(-1) if paired else counts != 2
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        size, what = (8, "two whole pairs of four") if paired else (4, "two of four")
        pattern = "".join("01"[int(bit)] for bit in mask[row, group * size : (group + 1) * size])
        raise ValueError(f"pack: the mask keeps {pattern} in row {row}, group {group}; wanted {what}, make it with mask()")


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2] if framework(array) else ""


def _described(array: Any) -> str:
    return f"{_dtype(array)} {tuple(array.shape)}" if framework(array) else f"a {type(array).__name__}"
