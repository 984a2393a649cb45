"""Which layers are compressed, how their weights become whole numbers, and how those are packed: for arrays of any framework.

Scales are float16, as the file stores them, so that training, the file and both frameworks know the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Bool, Float, Float64, Shaped, UInt16

from kernels import bitpack, sparse24
from kernels.fake_quant import fake_quantize, limits

LAYERS = r"(patches|.*\.(query|key|value|output|up|down|merge))"
"""Every matrix of the network but the classifier, which is called head."""
FORMATS = {"fp16": 16, "int8": 8, "int4": 4}
Compile = Callable[..., Callable[..., Any]]
FLOOR = 2.0**-24
"""The smallest float16 above zero."""


def as_it_is(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """Compiles nothing."""
    return function


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight matrix in the format, NumPy.

    Attributes:
        values: float16 (rows, half), int8 (rows, half), or bytes of two 4-bit numbers (rows, half / 2).
        meta: where they stand, see :func:`kernels.sparse24.pack`.
        scale: float16 for each row; None for float16 values.
        k: columns of the matrix; the values are of as many, filled up to whole groups.
    """

    values: Shaped[np.ndarray, "rows stored"]
    meta: UInt16[np.ndarray, "rows_of_meta words"]
    scale: Float[np.ndarray, " scales"] | None
    k: int
    bits: int

    def __post_init__(self) -> None:
        # So that what was read from a file is as good as what was packed here.
        if self.bits not in FORMATS.values():
            raise ValueError(f"weights of {self.bits} bits; the format has 16, 8 and 4")
        rows, whole = len(self.values), filled(self.k, self.bits)
        dtype, stored = {16: ("float16", whole // 2), 8: ("int8", whole // 2), 4: ("uint8", whole // 4)}[self.bits]
        found = [(str(each.dtype), each.shape) for each in (self.values, self.meta)]
        wanted = [(dtype, (rows, stored)), ("uint16", (rows, -(-whole // (32 if self.bits == 4 else 16))))]
        if found != wanted:
            raise ValueError(f"values and places are {found}; {self.k} columns of {self.bits} bits want {wanted}")
        scale = None if self.scale is None else (str(self.scale.dtype), self.scale.shape)
        if scale != (None if self.bits == 16 else ("float16", (rows,))):
            raise ValueError(
                f"the scale is {scale}; {rows} rows of {self.bits} bits want {'none' if self.bits == 16 else 'float16'}"
            )

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.meta.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def weights(self) -> Float[np.ndarray, "rows k"]:
        """The dense matrix in float32."""
        values = self.values
        if self.bits == 4:
            halves = bitpack.unpack(values, bits=4, count=2 * values.shape[1], high_first=False)
            values = ((halves ^ 8).astype(np.int16) - 8).astype(np.int8)
        whole = sparse24.unpack(values, self.meta, k=filled(self.k, self.bits), paired=self.bits == 4)
        dense = whole[:, : self.k].astype(np.float32)
        return dense if self.scale is None else dense * self.scale.astype(np.float32)[:, None]


def compressed_layers(names: Any, classifier: bool) -> list[str]:
    """Those of the layers that are pruned and quantised."""
    return [name for name in names if re.fullmatch(LAYERS, name) or (classifier and name == "head")]


def filled(k: int, bits: int) -> int:
    """k filled up to whole groups."""
    group = 8 if bits == 4 else 4
    return -(-k // group) * group


def layer_mask(
    name: str, weight: Shaped[Any, "rows k"], bits: int, ragged: str = "pad", compiled: Compile = as_it_is
) -> Bool[Any, "rows filled"] | None:
    """The mask of a layer, in the paired form for 4 bits, over whole groups; None: it stays dense.

    Args:
        ragged: what to do where k is no whole number of groups: "pad" (as if there were columns of zeros behind), "dense",
            or "refuse".
        compiled: takes and gives a function; ``jax.jit`` spares JAX its steps one by one.

    Raises:
        ValueError: such a k with "refuse"; NaN.
    """
    xp, k = array_namespace(weight), weight.shape[1]
    if bool(xp.any(weight != weight)):
        raise ValueError(f"the layer {name!r} has a weight that is NaN; find out where it comes from")
    if filled(k, bits) != k and ragged == "refuse":
        group = 8 if bits == 4 else 4
        raise ValueError(f"the layer {name!r} has {k} inputs, no multiple of {group}; take ragged=pad or ragged=dense")
    if filled(k, bits) != k and ragged == "dense":
        return None
    return compiled(_mask, static_argnames=("bits",))(weight, bits=bits)


def weight_scale(weight: Float[Any, "rows k"], bits: int) -> Float[Any, " rows"]:
    """max |w| / (2^(bits-1) - 1) of each row, rounded to float16; 1 for a row of zeros; in the dtype of the weights."""
    xp = array_namespace(weight)
    largest = xp.max(xp.abs(weight), axis=1)
    scale = xp.where(largest > 0, xp.clip(largest / limits(bits)[1], FLOOR, None), xp.ones_like(largest))
    return xp.astype(_cast(scale, "float16"), weight.dtype)


def pack_layer(weight: Float[Any, "rows k"], mask: Bool[Any, "rows filled"], bits: int, compiled: Compile = as_it_is) -> Packed:
    """The masked weights in the format; the packing is done by the framework that the arrays are of."""
    values, meta, scale = compiled(_packed, static_argnames=("bits",))(weight, mask, bits=bits)
    return Packed(_numpy(values), _numpy(meta), None if scale is None else _numpy(scale), weight.shape[1], bits)


def input_scale(values: np.ndarray, bits: int, candidates: int = 40, sample: int = 20_000) -> float:
    """The step, in float32, with the least mean square error of quantising these numbers, of fractions of the largest.

    What is static about a static range: it is chosen once, on a few training images.
    """
    flat = values.reshape(-1).astype(np.float64)
    largest = float(np.abs(flat).max(initial=0)) or 1.0
    some = flat[:: max(1, flat.size // sample)]
    low, high = limits(bits)
    steps = largest / high * np.arange(1, candidates + 1)[::-1] / candidates
    errors = [np.square(np.clip(np.rint(some / step), low, high) * step - some).mean() for step in steps]
    return float(np.float32(steps[int(np.argmin(errors))]))


def block_weights(losses: Float64[np.ndarray, " blocks"], kind: str) -> Float64[np.ndarray, " blocks"]:
    """Weights of mean 1 of the blocks in the second stage from their feature losses at the end of the first: "inverse"
    (hard to mimic, so less needed), "uniform", "proportional"."""
    losses = np.maximum(np.asarray(losses, np.float64), 1e-12)
    raw = {"inverse": 1 / losses, "uniform": np.ones_like(losses), "proportional": losses}[kind]
    return raw / raw.mean()


def _mask(weight: Any, bits: int) -> Any:
    return sparse24.mask(_widened(weight, bits), paired=bits == 4)


def _packed(weight: Any, mask: Any, bits: int) -> tuple[Any, Any, Any]:
    xp = array_namespace(weight)
    weight, scale = xp.where(mask[:, : weight.shape[1]], weight, xp.zeros_like(weight)), None
    if bits == 16:
        numbers = _cast(weight, "float16")
    else:
        scale = weight_scale(weight, bits)
        numbers = _cast(xp.round(fake_quantize(weight, scale, bits=bits, axis=0) / scale[:, None]), "int8")
        scale = _cast(scale, "float16")
    values, meta = sparse24.pack(_widened(numbers, bits), mask, paired=bits == 4)
    if bits == 4:
        values = bitpack.pack(_cast(values & 15, "uint8"), bits=4, high_first=False)
    return values, meta, scale


def _widened(array: Any, bits: int) -> Any:
    """Filled up to whole groups with columns of zeros."""
    more = filled(array.shape[1], bits) - array.shape[1]
    xp = array_namespace(array)
    return xp.concat([array, *[xp.zeros_like(array[:, :1])] * more], axis=1) if more else array


def _cast(array: Any, dtype: str) -> Any:
    xp = array_namespace(array)
    return xp.astype(array, getattr(xp, dtype))


def _numpy(array: Any) -> np.ndarray:
    return np.array(array.detach().cpu() if hasattr(array, "detach") else array)
