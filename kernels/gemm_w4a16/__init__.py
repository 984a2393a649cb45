"""Activations times weights of 4 bits that lie in Marlin's order: every 16 bytes that a thread of a GPU loads are already the
fragments its tensor core wants, and the product is made from the words themselves, without an unpacked copy of the weights.

    packed, stored = pack(codes, scales)          # codes (k, n) int8 in -8..7, scales (k / 128, n) or (1, n)
    y = matmul(x, packed, stored, group=128)      # x (..., k) -> y (..., n)

The order (Frantar et al., MARLIN, arXiv 2408.11743, section 3.4, and the authors' packer) is written out in
:mod:`kernels.gemm_w4a16.reference`, step by step, and in :mod:`kernels.gemm_w4a16.layout`, as one pattern.
"""

from __future__ import annotations

import os
from typing import Any

from jaxtyping import Float, Int8, Int32

from common.ops import framework, operation, readable

GROUP = 128
"""Weights along k that share a scale; a group of -1 is a whole column."""


@operation(backends=("torch", "jax"), exact=True)
def pack(
    codes: Int8[Any, "k n"], scales: Float[Any, "groups n"], *, group: int = GROUP, backend: str | None = None
) -> tuple[Int32[Any, "tiles words"], Float[Any, "groups n"]]:
    """Put W = q s into the order that :func:`matmul` reads: 8 weights in a word, as q + 8 in 4 bits.

    Args:
        codes: q, int8 in -8..7, of shape (k, n) with k a multiple of 128 and n of 256.
        scales: s, floating point (k / 128, n), or (1, n) with ``group=-1``; finite and not zero.
        group: 128 or -1.

    Returns:
        packed: int32 (k / 16, 2 n).
        stored: the scales with their columns in the kernel's order, dtype as given.

    Raises:
        ValueError: k, n or group that the format does not have; scales of another shape; a code outside -8..7, a scale
            that is zero or not finite, with its column (both read on the CPU and outside tracing alone).
        TypeError: codes that are not int8, such as weights that have not been quantised.

    Source: paper, section 3.4; authors' ``marlin/__init__.py``, ``Layer.pack``.
    """
    check_values("pack", codes, scales, group)
    return pack.operation(codes, scales, group=group, backend=backend)


@operation(backends=("torch", "jax"), exact=True)
def unpack(
    packed: Int32[Any, "tiles words"], scales: Float[Any, "groups n"], *, group: int = GROUP, backend: str | None = None
) -> tuple[Int8[Any, "k n"], Float[Any, "groups n"]]:
    """The inverse of :func:`pack`: codes (k, n) in -8..7, and the scales with their columns in order. Errors as there."""
    check_packed("unpack", packed, scales, group)
    return unpack.operation(packed, scales, group=group, backend=backend)


@operation(backends=("torch", "jax"), exact=True)
def dequantize(
    packed: Int32[Any, "tiles words"], scales: Float[Any, "groups n"], *, group: int = GROUP, backend: str | None = None
) -> Float[Any, "k n"]:
    """W = q s in the dtype of the scales, rounded once.

    Nibbles become float16 by bits alone: a nibble below the exponent of 1024 is 1024 + v, four bits higher 1024 + 16 v, so
    that one subtraction, or one multiply-add, leaves v - 8. Arguments and errors as :func:`unpack`.

    Source: paper, section 3.4 ("Dequantization"), after Kim et al. (arXiv 2211.10017).
    """
    check_packed("dequantize", packed, scales, group)
    return dequantize.operation(packed, scales, group=group, backend=backend)


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x",))
def matmul(
    x: Float[Any, "*batch k"],
    packed: Int32[Any, "tiles words"],
    scales: Float[Any, "groups n"],
    *,
    group: int = GROUP,
    locks: Int32[Any, " columns"] | None = None,
    backend: str | None = None,
) -> Float[Any, "*batch n"]:
    """y = x W with W = q s never written out as a whole. The gradient is dx = dy W^T; the weights are constants.

    Args:
        x: any leading axes; float16, bfloat16, float32, or float64 (PyTorch and JAX). On a GPU W is rounded to the dtype of
            x and products are summed in float32; on the CPU everything is float32 (float64 for float64).
        packed, scales: as :func:`pack` returns them.
        group: 128 or -1.
        locks: int32, zeros, at least ceil(m / 16) n / 64 of them: the counters by which blocks of the Triton kernel hand
            sums over, zero again afterwards. None takes the backend's own, one set a device; give one to each stream. With
            TRITON_DEBUG set, or on the CPU, they are looked at first. Other backends have no use for them.
        backend: "torch", "triton", "jax", "pallas" or "reference"; None chooses by the arrays' type and device.

    Returns:
        y (*batch, n) in the dtype of x.

    Raises:
        ValueError: shapes that do not fit each other or the format; locks that are not zero, or too few.
        TypeError: dtypes other than these.

    Source: paper, sections 3.3 and 3.4.
    """
    check_packed("matmul", packed, scales, group)
    check_x("matmul", x, 16 * packed.shape[0])
    options: dict[str, Any] = {}
    if locks is not None:
        _check_locks(locks, x, packed.shape[1] // 2)
        options = {"locks": locks} if backend == "triton" or (backend is None and getattr(x, "is_cuda", False)) else {}
    return matmul.operation(x, packed, scales, group=group, backend=backend, **options)


def check_values(name: str, codes: Any, scales: Any, group: int) -> None:
    """What can be packed at all; shared with the 2:4 form."""
    if framework(codes) is None:
        raise TypeError(f"{name}: codes is a {type(codes).__name__}; wanted a torch tensor, a jax array or a NumPy array")
    if dtype(codes) != "int8":
        raise TypeError(f"{name}: codes has dtype {codes.dtype}; wanted int8 codes in -8..7, quantise the weights first")
    if len(codes.shape) != 2:
        raise ValueError(f"{name}: codes has shape {tuple(codes.shape)}; wanted (k, n)")
    k, n = codes.shape
    check_sizes(name, k, n)
    check_scales(name, scales, k, n, group)
    if readable(codes) and not -8 <= int(codes.min()) <= int(codes.max()) <= 7:
        raise ValueError(f"{name}: codes reach from {int(codes.min())} to {int(codes.max())}; wanted -8..7")
    if readable(scales):
        import numpy as np

        values = np.asarray(scales.detach().double() if framework(scales) == "torch" else scales, np.float64)
        bad = ~np.isfinite(values) | (values == 0)
        if bad.any():
            row, column = (int(each) for each in np.argwhere(bad)[0])
            raise ValueError(
                f"{name}: the scale of column {column} in group {row} is {values[row, column]}; wanted finite, not zero"
            )


def check_sizes(name: str, k: int, n: int) -> None:
    if not k or not n or k % GROUP or n % 256:
        raise ValueError(f"{name}: k is {k} and n is {n}; wanted k a multiple of 128 and n a multiple of 256, pad with zeros")


def check_scales(name: str, scales: Any, k: int, n: int, group: int) -> None:
    if group not in (-1, GROUP):
        raise ValueError(f"{name}: group is {group!r}; wanted 128, or -1 for one scale a column")
    if "float" not in dtype(scales):
        raise TypeError(f"{name}: scales has dtype {scales.dtype}; wanted floating point")
    wanted = (1 if group == -1 else k // GROUP, n)
    if tuple(scales.shape) != wanted:
        raise ValueError(f"{name}: scales has shape {tuple(scales.shape)}; k = {k}, n = {n}, group = {group} want {wanted}")


def check_packed(name: str, packed: Any, scales: Any, group: int) -> None:
    if dtype(packed) != "int32":
        raise TypeError(f"{name}: packed has dtype {packed.dtype}; wanted int32 words, as pack returns them")
    if len(packed.shape) != 2 or packed.shape[1] % 2:
        raise ValueError(f"{name}: packed has shape {tuple(packed.shape)}; wanted (k / 16, 2 n)")
    k, n = 16 * packed.shape[0], packed.shape[1] // 2
    check_sizes(name, k, n)
    check_scales(name, scales, k, n, group)


def check_x(name: str, x: Any, k: int) -> None:
    if "float" not in dtype(x):
        raise TypeError(f"{name}: x has dtype {x.dtype}; wanted floating point")
    if not x.shape or x.shape[-1] != k:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; the weights have k = {k}, wanted (..., {k})")


def dtype(array: Any) -> str:
    return str(getattr(array, "dtype", type(array).__name__)).rpartition(".")[2]


def _check_locks(locks: Any, x: Any, n: int) -> None:
    m = 1
    for size in x.shape[:-1]:
        m *= int(size)
    wanted = -(-m // 16) * (n // 64)
    if dtype(locks) != "int32" or len(locks.shape) != 1 or locks.shape[0] < wanted:
        raise ValueError(f"matmul: locks is {dtype(locks)} {tuple(locks.shape)}; wanted int32 zeros, {wanted} or more")
    if (readable(locks) or os.environ.get("TRITON_DEBUG")) and bool((locks != 0).any()):
        raise ValueError("matmul: locks are not zero; another call is using them, or one was interrupted: zero them first")
