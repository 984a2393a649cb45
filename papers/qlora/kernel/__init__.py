"""A linear layer whose weights exist only as two 4-bit indices in a byte and one scale for each block of them.

The product dequantises a tile, uses it and forgets it, forwards and backwards: no array as large as the weights is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from common.ops import framework, operation
from kernels.block_quant import BLOCKS, double_dequantize


@operation(backends=("torch", "triton", "jax", "pallas"), differentiable=("x",))
def matmul_nf4(
    x: Float[Any, "*batch k"],
    packed: UInt8[Any, "n half"],
    absmax: Shaped[Any, " blocks"],
    code: Float[Any, " 16"],
    *,
    scales: Float32[Any, " outer"] | None = None,
    offset: Float32[Any, ""] | None = None,
    block: int = 64,
    backend: str | None = None,
) -> Float[Any, "*batch n"]:
    """y = x W^T with W_ij = q_(index_ij) c1_((i k + j) // block), W (n, k) flattened row by row and never held whole.

    Byte b of row i holds the indices of W_(i, 2b), in its high half, and of W_(i, 2b + 1). Blocks may cross rows. The
    gradient is dx = dy W, with the tiles of W made again from the bytes; the weights are constants and get none.

    Args:
        x: any leading axes; float16, bfloat16 or float32, or float64 (PyTorch, JAX). W is made in float32 (in float64 if
            c1 is float64), rounded to the dtype of x, and products are summed in float32 at least.
        packed: uint8 (n, k / 2); :func:`kernels.bitpack.pack` of the indices makes it.
        absmax: c1, float32 (n k / block,) rounded up; or its 8-bit indices together with ``scales`` and ``offset``.
        code: 16 values q; :func:`kernels.block_quant.code_book`, or another order of them, as bitsandbytes' FP4.
        scales, offset: what :func:`kernels.block_quant.double_quantize` returned beside the indices: c2 for each 256, mean.
        block: weights that share a scale, one of ``kernels.block_quant.BLOCKS``.
        backend: "torch", "triton", "jax", "pallas" or "reference"; None chooses by the arrays' type and device.

    Returns:
        y (*batch, n) in the dtype of x.

    Raises:
        ValueError: shapes that do not fit each other or the block; scales without offset, or the other way round.
        TypeError: dtypes other than these.

    Source: Dettmers et al., QLoRA (arXiv 2305.14314), section 3, equations 5 and 6.
    """
    k = x.shape[-1] if x.shape else 0
    if len(packed.shape) != 2 or packed.shape[1] * 2 != k:
        raise ValueError(
            f"matmul_nf4: x has {k} features and packed shape {tuple(packed.shape)}; wanted packed (n, {k} / 2), k even"
        )
    if "float" not in _dtype(x):
        raise TypeError(f"matmul_nf4: x has dtype {x.dtype}; wanted floating point")
    absmax = _wide(_scales("matmul_nf4", packed, absmax, scales, offset, block))
    code = _wide(_code("matmul_nf4", code, packed))
    return matmul_nf4.operation(x, packed, absmax, code, block=block, backend=backend)


@operation(backends=("torch", "jax"), exact=True)
def dequantize_nf4(
    packed: UInt8[Any, "n half"],
    absmax: Shaped[Any, " blocks"],
    code: Float32[Any, " 16"],
    *,
    scales: Float32[Any, " outer"] | None = None,
    offset: Float32[Any, ""] | None = None,
    block: int = 64,
    backend: str | None = None,
) -> Float32[Any, "n k"]:
    """W itself, in float32: what merging adapters into the weights needs. Arguments and errors as :func:`matmul_nf4`."""
    absmax = _scales("dequantize_nf4", packed, absmax, scales, offset, block)
    code = _code("dequantize_nf4", code, packed)
    return dequantize_nf4.operation(packed, absmax, code, block=block, backend=backend)


def _scales(name: str, packed: Any, absmax: Any, scales: Any, offset: Any, block: int) -> Any:
    """c1 in float32, checked against the weights."""
    if block not in BLOCKS:
        raise ValueError(f"{name}: block is {block!r}; wanted a power of two, one of {', '.join(map(str, BLOCKS))}")
    if _dtype(packed) != "uint8":
        raise TypeError(f"{name}: packed has dtype {packed.dtype}; wanted uint8, two indices in each")
    elements = 2 * packed.shape[0] * packed.shape[1]
    if tuple(absmax.shape) != (-(-elements // block),):
        raise ValueError(
            f"{name}: absmax has shape {tuple(absmax.shape)}; {elements} weights in blocks of {block} want "
            f"({-(-elements // block)},), pass the block that was quantised with"
        )
    if (scales is None) != (offset is None) or (scales is not None) != (_dtype(absmax) == "uint8"):
        raise ValueError(
            f"{name}: absmax is {_dtype(absmax)}, scales {'missing' if scales is None else 'given'}, offset "
            f"{'missing' if offset is None else 'given'}; wanted float32 alone, or uint8 with both"
        )
    if scales is None:
        if "float" not in _dtype(absmax):
            raise TypeError(f"{name}: absmax has dtype {absmax.dtype}; wanted float32, or uint8 with scales and offset")
        return absmax
    return double_dequantize(absmax, scales, offset)


def _code(name: str, code: Any, like: Any) -> Any:
    """The code as an array of the framework and on the device of ``like``."""
    if tuple(code.shape) != (16,) or "float" not in _dtype(code):
        raise ValueError(f"{name}: code is {_dtype(code)} {tuple(code.shape)}; wanted 16 values of float32")
    kind = framework(like)
    if isinstance(code, np.ndarray) and kind == "torch":
        import torch

        return torch.tensor(code, device=like.device)
    if isinstance(code, np.ndarray) and kind == "jax":
        import jax.numpy as jnp

        return jnp.asarray(code)
    return code


def _wide(array: Any) -> Any:
    """Half precision as float32."""
    if _dtype(array) not in ("float16", "bfloat16"):
        return array
    return array.float() if framework(array) == "torch" else array.astype("float32")


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]
