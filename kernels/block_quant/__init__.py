"""Block-wise quantisation with a code book: each block of numbers is divided by its largest magnitude, and each quotient
is replaced by the place of the nearest value in a sorted book of at most 256. The scales can be quantised the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from common.ops import framework, operation, readable

from .codes import code_book, stored_bits

__all__ = [
    "BLOCKS",
    "code_book",
    "dequantize_blockwise",
    "double_dequantize",
    "double_quantize",
    "quantize_blockwise",
    "stored_bits",
]

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LARGEST = 2.0**126
"""The reciprocal of a larger scale is no normal number in float32."""


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def quantize_blockwise(
    x: Float[Any, "*shape"], code: Float32[Any, " size"], *, block: int = 64, backend: str | None = None
) -> tuple[UInt8[Any, " count"], Float32[Any, " blocks"]]:
    """Indices into a code book, and one scale for each block of the flattened x.

    With c_b = max |x_i| over block b and the sorted code q_0 .. q_(s-1), index_i is the number of middles
    (q_j + q_(j+1)) / 2 that lie below x_i (1 / c_b). So a value goes to the nearest q_j, and to the lower one of two
    equally near. All arithmetic is float32; c_b below 2^-126 counts as 2^-126 in the division. The result is bit for bit
    that of bitsandbytes' ``quantize_4bit`` on the CPU for whole blocks of normal numbers (in a ragged last block it
    divides instead of multiplying); its 8-bit ``quantize_blockwise`` first rounds the quotient to one of 65536 steps on
    a CPU, which this does not.

    Args:
        x: any shape; float16, bfloat16, float32, or float64, which is rounded to float32.
        code: sorted values, 2 to 256; NumPy or of x's framework; see :func:`code_book`.
        block: elements that share a scale, one of ``BLOCKS``; the last block may be ragged.

    Returns:
        indices uint8 (x.size,) and scales float32 (ceil(x.size / block),). A block of zeros has scale 0.

    Raises:
        ValueError: a block that is not offered, a code that is not sorted or too long, x with NaN, infinity or a
            magnitude above 2^126 (found on the CPU and outside tracing alone).
        TypeError: x or code that are not floating point.

    Source: Dettmers et al., QLoRA (arXiv 2305.14314), section 2 and 3; Dettmers et al., arXiv 2110.02861, section 2.
    """
    _check_block("quantize_blockwise", block)
    _check_float("quantize_blockwise", "x", x)
    code = _book("quantize_blockwise", code, x)
    indices, absmax = quantize_blockwise.operation(x, code, block=block, backend=backend)
    # NaN and infinity reach the scale of their block, which is far cheaper to look at than x.
    if readable(absmax) and absmax.shape[0] and not float(absmax.max()) <= LARGEST:
        raise ValueError(f"quantize_blockwise: {_worst(x)}; wanted finite numbers up to 2^126, find out where it comes from")
    return indices, absmax


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True)
def dequantize_blockwise(
    indices: UInt8[Any, " count"],
    absmax: Float32[Any, " blocks"],
    code: Float32[Any, " size"],
    *,
    block: int = 64,
    backend: str | None = None,
) -> Float32[Any, " count"]:
    """x_i = q_(index_i) c_(i // block), the inverse of :func:`quantize_blockwise` up to rounding to the code.

    Args:
        indices: uint8 (count,), each below the size of the code; one that is not gives an unspecified number.
        absmax: float32, one scale for each block: (ceil(count / block),).
        code: as given to :func:`quantize_blockwise`.

    Returns:
        float32 (count,); reshape it to what was quantised.

    Raises:
        ValueError: scales that are too few or too many for the indices; a block or code that is not offered.
        TypeError: indices that are not uint8, scales that are not float32.
    """
    _check_block("dequantize_blockwise", block)
    for what, array, kind in (("indices", indices, "uint8"), ("absmax", absmax, "float32")):
        if framework(array) is None or _dtype(array) != kind or len(array.shape) != 1:
            raise TypeError(f"dequantize_blockwise: {what} is {_described(array)}; wanted {kind} with one axis")
    blocks = -(-indices.shape[0] // block)
    if absmax.shape[0] != blocks:
        raise ValueError(
            f"dequantize_blockwise: {absmax.shape[0]} scales for {indices.shape[0]} indices; blocks of {block} want {blocks}, "
            "pass the block that was quantised with"
        )
    code = _book("dequantize_blockwise", code, indices)
    return dequantize_blockwise.operation(indices, absmax, code, block=block, backend=backend)


def double_quantize(
    absmax: Float32[Any, " blocks"], *, block: int = 256, backend: str | None = None
) -> tuple[UInt8[Any, " blocks"], Float32[Any, " outer"], Float32[Any, ""]]:
    """Quantise the scales themselves: c1 - mean(c1) in blocks of ``block`` with the book "dynamic_signed".

    32 bits for each block of weights become 8, and 32 / block for the scales of the scales.

    Returns:
        indices uint8 (blocks,), scales c2 float32 (ceil(blocks / block),), and the mean, which is the framework's own
        (sums of float32 in another order may differ in the last bit).

    Raises: as :func:`quantize_blockwise`.

    Source: Dettmers et al., QLoRA (arXiv 2305.14314), section 3, double quantization.
    """
    if framework(absmax) is None or _dtype(absmax) != "float32" or len(absmax.shape) != 1:
        raise TypeError(f"double_quantize: absmax is {_described(absmax)}; wanted float32 with one axis")
    offset = absmax.mean() if absmax.shape[0] else absmax.sum()
    if framework(absmax) == "numpy":
        absmax, offset = np.asarray(absmax), np.asarray(offset)
    indices, scales = quantize_blockwise(absmax - offset, code_book("dynamic_signed"), block=block, backend=backend)
    return indices, scales, offset


def double_dequantize(
    indices: UInt8[Any, " blocks"],
    scales: Float32[Any, " outer"],
    offset: Float32[Any, ""],
    *,
    block: int = 256,
    backend: str | None = None,
) -> Float32[Any, " blocks"]:
    """c1 = dequantize(indices, c2) + mean, the inverse of :func:`double_quantize`; raises as :func:`dequantize_blockwise`."""
    return dequantize_blockwise(indices, scales, code_book("dynamic_signed"), block=block, backend=backend) + offset


def _check_block(name: str, block: int) -> None:
    if block not in BLOCKS:
        raise ValueError(f"{name}: block is {block!r}; wanted a power of two, one of {', '.join(map(str, BLOCKS))}")


def _check_float(name: str, what: str, array: Any) -> None:
    if framework(array) is None or "float" not in _dtype(array):
        raise TypeError(f"{name}: {what} is {_described(array)}; wanted an array of floating point")


def _book(name: str, code: Any, like: Any) -> Any:
    """The code checked, as an array of the framework and on the device of ``like``."""
    _check_float(name, "code", code)
    if len(code.shape) != 1 or not 2 <= code.shape[0] <= 256 or _dtype(code) != "float32":
        raise ValueError(f"{name}: code is {_described(code)}; wanted 2 to 256 values of float32 with one axis")
    if readable(code):
        values = np.asarray(code)
        # Written so that NaN fails it.
        if not (np.diff(values) >= 0).all() or not np.isfinite(values[[0, -1]]).all():
            raise ValueError(f"{name}: code is not sorted and finite; sort it and keep the order to translate the indices")
    kind = framework(like)
    if framework(code) == "numpy" and kind == "torch":
        import torch

        return torch.tensor(code, device=like.device)
    if framework(code) == "numpy" and kind == "jax":
        import jax.numpy as jnp

        return jnp.asarray(code)
    return code


def _worst(x: Any) -> str:
    """The first entry that cannot be quantised, in words."""
    values = np.asarray(x.detach().double() if framework(x) == "torch" else x, dtype=np.float64).reshape(-1)
    place = int(np.argmax(~(np.abs(values) <= LARGEST)))
    return f"x has {values[place]} at place {place} of {values.size}"


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]


def _described(array: Any) -> str:
    return f"{_dtype(array)} {tuple(array.shape)}" if framework(array) else f"a {type(array).__name__}"
