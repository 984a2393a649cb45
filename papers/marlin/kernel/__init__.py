"""Sparse-MARLIN's operation: activations times weights of which two of every four along k are kept, each in 4 bits, in the order
that the sparse tensor cores read.

    values, meta, stored = sparse_pack(codes, scales)       # codes (k, n) int8, two of every four zero
    y = sparse_matmul(x, values, meta, stored)

A weight costs 2 bits of its value and 1 of its place, and 1/8 of its scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8, Int16, Int32

from common.ops import framework, operation, readable
from kernels import sparse24
from kernels.gemm_w4a16 import GROUP, check_scales, check_sizes, check_values, check_x, dtype


@operation(backends=("torch", "jax"), exact=True)
def sparse_pack(
    codes: Int8[Any, "k n"],
    scales: Float[Any, "groups n"],
    mask: Bool[Any, "k n"] | None = None,
    *,
    group: int = GROUP,
    backend: str | None = None,
) -> tuple[Int32[Any, "tiles words"], Int16[Any, "tiles words"], Float[Any, "groups n"]]:
    """Put W = q s, two of every four along k, into the order that :func:`sparse_matmul` reads.

    Args:
        codes: q, int8 in -8..7, of shape (k, n) with k a multiple of 128 and n of 256; what the mask drops is not looked at.
        scales: floating point (k / 128, n), or (1, n) with ``group=-1``; finite and not zero. A group is 128 weights before
            half of them are dropped.
        mask: which are kept, exactly two of each aligned four along k. None: those that are not zero, and as many zeros as are
            missing; then no four may hold more than two others.

    Returns:
        values: int32 (k / 32, 2 n): the kept codes, (k / 2, n), as q + 8 in 4 bits.
        meta: int16 (k / 32, 2 n): two bits for the place of each in its four, the first in the lower ones.
        stored: the scales with their columns in the kernel's order.

    Raises:
        ValueError: sizes, group, scales or codes as :func:`kernels.gemm_w4a16.pack`; fours that keep more or fewer than two,
            the first of them by column and group (on the CPU and outside tracing alone).
        TypeError: codes that are not int8.

    Source: authors' ``Sparse-Marlin``, ``Layer.pack``; meta as CUTLASS has it for mma.sp m16n8k32,
    but for the rows, of which 64 are spread over the loads of a thread.
    """
    check_values("sparse_pack", codes, scales, group)
    if mask is None:
        if readable(codes):
            many = np.argwhere((np.asarray(codes) != 0).reshape(codes.shape[0] // 4, 4, -1).sum(1).T > 2)
            if many.size:
                column, four = (int(each) for each in many[0])
                raise ValueError(
                    f"sparse_pack: column {column} keeps more than two of the four weights of group {four} (rows {4 * four} to "
                    f"{4 * four + 3}); prune it first, or give a mask"
                )
        mask = sparse24.mask(_rows(codes)).T
    if tuple(mask.shape) != tuple(codes.shape) or dtype(mask) != "bool":
        raise ValueError(f"sparse_pack: mask is {dtype(mask)} {tuple(mask.shape)}; wanted bool {tuple(codes.shape)}")
    if readable(mask):
        wrong = np.argwhere(np.asarray(mask).reshape(codes.shape[0] // 4, 4, -1).sum(1).T != 2)
        if wrong.size:
            column, four = (int(each) for each in wrong[0])
            raise ValueError(
                f"sparse_pack: the mask keeps other than two of the four weights of column {column}, group {four} (rows "
                f"{4 * four} to {4 * four + 3}); make it with kernels.sparse24.mask"
            )
    return sparse_pack.operation(codes, scales, mask, group=group, backend=backend)


@operation(backends=("torch", "jax"), exact=True)
def sparse_unpack(
    values: Int32[Any, "tiles words"],
    meta: Int16[Any, "tiles words"],
    scales: Float[Any, "groups n"],
    *,
    group: int = GROUP,
    backend: str | None = None,
) -> tuple[Int8[Any, "k n"], Float[Any, "groups n"], Bool[Any, "k n"]]:
    """The inverse of :func:`sparse_pack`: codes, zero where nothing was kept, scales in order, and the mask."""
    _check_stored("sparse_unpack", values, meta, scales, group)
    return sparse_unpack.operation(values, meta, scales, group=group, backend=backend)


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x",))
def sparse_matmul(
    x: Float[Any, "*batch k"],
    values: Int32[Any, "tiles words"],
    meta: Int16[Any, "tiles words"],
    scales: Float[Any, "groups n"],
    *,
    group: int = GROUP,
    backend: str | None = None,
) -> Float[Any, "*batch n"]:
    """y = x W with W from :func:`sparse_pack`, never written out as a whole; dx = dy W^T, the weights are constants.

    Triton has no sparse product, so its kernel reads the 3.125 bits a weight and multiplies densely: the gain in memory traffic
    is had, that in arithmetic is not.

    Args:
        x: any leading axes; float16, bfloat16, float32, or float64 (PyTorch and JAX).
        values, meta, scales: as :func:`sparse_pack` returns them.

    Returns:
        y (*batch, n) in the dtype of x.

    Raises:
        ValueError: shapes that do not fit each other or the format.
        TypeError: dtypes other than these.

    Source: MARLIN, section 4 (Sparse-MARLIN).
    """
    _check_stored("sparse_matmul", values, meta, scales, group)
    check_x("sparse_matmul", x, 32 * values.shape[0])
    return sparse_matmul.operation(x, values, meta, scales, group=group, backend=backend)


def _check_stored(name: str, values: Any, meta: Any, scales: Any, group: int) -> None:
    if dtype(values) != "int32" or dtype(meta) != "int16":
        raise TypeError(
            f"{name}: values are {dtype(values)} and meta {dtype(meta)}; wanted int32 and int16, as sparse_pack makes"
        )
    if len(values.shape) != 2 or tuple(values.shape) != tuple(meta.shape) or values.shape[1] % 2:
        raise ValueError(
            f"{name}: values have shape {tuple(values.shape)} and meta {tuple(meta.shape)}; wanted (k / 32, 2 n) of both"
        )
    k, n = 32 * values.shape[0], values.shape[1] // 2
    check_sizes(name, k, n)
    check_scales(name, scales, k, n, group)


def _rows(codes: Any) -> Any:
    """(n, k), rows of which lie together."""
    turned = codes.T
    return turned.contiguous() if framework(codes) == "torch" else turned
