"""The non-linear layers of a transformer in integers alone: Shiftmax, ShiftGELU, I-LayerNorm.

Codes x stand for S x with a scale S that is known before anything runs; all that a kernel sees of it is the *unit*, the number
of steps that make one factor of two: ceil(1 / S). The shift exponential of a code x <= 0 is, with log2 e taken as 1.0111b,

    x' = max(x + (x >> 1) - (x >> 4), -N unit),   q = floor(x' / -unit),   r = x' + q unit,
    exp(S x) ~ S 2^-N floor((r / 2 + unit) 2^(N - q)),

where 2^-f is replaced by its chord 1 - f / 2 on [0, 1).
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Int, Int8, Int16, Int32

from common.ops import framework, operation, readable

__all__ = ["i_layernorm", "shift_gelu", "shiftmax", "unit_of"]

MOST = 2**31 - 1
"""What a 32-bit accumulator holds."""

WIDE_N = 40
"""N of the wide form, whose reciprocal has 62 bits."""

_BACKENDS = ("torch", "triton", "jax", "pallas")


def unit_of(scale: float, name: str = "scale") -> int:
    """ceil(1 / S): how many steps of scale S make one factor of two in the shift exponential; the paper's -x_0.

    Raises:
        ValueError: a scale that is not above 0, NaN or infinite; names the tensor.
    """
    if not scale > 0 or math.isinf(scale):
        raise ValueError(f"{name}: the scale is {scale}; wanted a finite number above 0, calibrate the quantiser")
    return -math.floor(-1.0 / scale)


@operation(backends=_BACKENDS, exact=True)
def shiftmax(
    x: Int[Any, "*rows count"], *, unit: int, n: int = 15, bits: int = 16, backend: str | None = None
) -> Int8[Any, "*rows count"] | Int16[Any, "*rows count"]:
    """Softmax over the last axis in integers; the result y stands for y 2^-(bits - 1).

    With E = shift exponential of x - max x and F = floor((2^31 - 1) / sum E): y = floor(E F / 2^(32 - bits)). Both E F and the
    sum fit into 32 bits.

    Args:
        x: int8, int16, or int32 of magnitude below 2^29.
        unit: :func:`unit_of` the scale of x.
        n: bits of the exponential, the paper's N.
        bits: of the result; its largest code 2^(bits-1) - 1 stands for almost 1. 16 is the paper's PyTorch code, 8 its TVM code.

    Returns:
        int8 for 4 and 8 bits, int16 for 16.

    Raises:
        ValueError: bits other than 4, 8, 16; a unit or n below 1. OverflowError: a sum of exponentials could leave 32 bits;
        names the n that fits. TypeError: x is not an integer array.

    Source: Li and Gu, I-ViT (arXiv 2207.01405), section 3.3, algorithm 1.
    """
    _check_codes("shiftmax", x)
    if bits not in (4, 8, 16):
        raise ValueError(f"shiftmax: bits is {bits!r}; wanted 4, 8 or 16")
    if not x.shape[-1]:
        raise ValueError("shiftmax: a row without entries has no softmax")
    _check_unit("shiftmax", unit, n, x.shape[-1])
    return shiftmax.operation(x, unit=unit, n=n, bits=bits, backend=backend)


@operation(backends=_BACKENDS, exact=True)
def shift_gelu(
    x: Int[Any, "*rows count"], *, unit: int, n: int = 23, wide: bool = False, shifts: bool = False, backend: str | None = None
) -> Int32[Any, "*rows count"]:
    """GELU as x sigmoid(1.702 x) in integers; the result y stands for S 2^-7 y.

    With m = max(0, max of the row): E1 = shift exponential of x - m, E2 of -m,
    sigmoid = floor(E1 floor((2^31 - 1) / (E1 + E2)) / 2^24), y = x sigmoid. (Where a whole row is negative the paper has m < 0,
    and E2 may leave 32 bits; m = 0 is the same function.)

    Args:
        x: int8 or int16, or int32 of magnitude below 2^24.
        unit: :func:`unit_of` of 1.702 S, or with ``shifts`` of S.
        n: bits of the exponential. Rows whose maximum exceeds n units see E2 underflow; a large n leaves few bits to the reciprocal.
        wide: n = 40 and a 62-bit reciprocal in 64-bit arithmetic, floor(E1 floor((2^62 - 1) / (E1 + E2)) / 2^55): for wide ranges.
        shifts: 1.702 by shifts, x + (x >> 1) + (x >> 3) + (x >> 4), instead of in the scale.

    Raises:
        ValueError: a unit or n below 1, or n other than 40 with ``wide``. OverflowError: E1 + E2 could leave 32 bits (with
        ``wide`` 62); names the n that fits. TypeError: x is not an integer array.

    Source: Li and Gu, I-ViT (arXiv 2207.01405), section 3.4, algorithm 2; ``wide`` is an addition.
    """
    _check_codes("shift_gelu", x, 2**24)
    if not x.shape[-1]:
        raise ValueError("shift_gelu: a row without entries has no largest one")
    if wide and n != WIDE_N:
        raise ValueError(f"shift_gelu: n is {n}; the wide form has n = {WIDE_N}, pass that or leave wide out")
    _check_unit("shift_gelu", unit, n, 2, 2**62 - 1 if wide else MOST)
    return shift_gelu.operation(x, unit=unit, n=n, wide=wide, shifts=shifts, backend=backend)


@operation(backends=_BACKENDS, exact=True)
def i_layernorm(x: Int[Any, "*rows count"], *, steps: int = 10, backend: str | None = None) -> Int32[Any, "*rows count"]:
    """Normalisation of the last axis to mean 0 and deviation 1 in integers; y stands for sqrt(count) 2^-30 y, for any scale of x.

    d = x - floor(mean x + 1/2), v = sum d^2, k = 2^16, then ``steps`` times k <- floor((k + floor(v / k)) / 2);
    y = floor(d floor((2^31 - 1) / k) / 2). v is kept in 64 bits. Scale and shift of the layer are not applied: the shift is added
    to y as an integer, and the scale joins that of y.

    Args:
        x: int8, int16, or int32 of magnitude below 2^24.
        steps: Newton steps of the root. From 2^16 ten have not converged where v is below about 3 10^4.

    Raises:
        ValueError: steps below 1, or an empty row. TypeError: x is not an integer array.

    Source: Li and Gu, I-ViT (arXiv 2207.01405), section 3.5, algorithm 3.
    """
    _check_codes("i_layernorm", x, 2**24)
    if not 1 <= x.shape[-1] < 2**14:
        raise ValueError(f"i_layernorm: rows have {x.shape[-1]} entries; wanted 1 to 16383, whose sum of squares fits 62 bits")
    if steps < 1:
        raise ValueError(f"i_layernorm: steps is {steps}; wanted 1 or more")
    return i_layernorm.operation(x, steps=steps, backend=backend)


def _check_codes(name: str, x: Any, below: int = 2**29) -> None:
    dtype = str(getattr(x, "dtype", "")).rpartition(".")[2]
    if framework(x) is None or dtype not in ("int8", "int16", "int32"):
        raise TypeError(f"{name}: x is {getattr(x, 'dtype', type(x).__name__)}; wanted an array of int8, int16 or int32")
    if not x.shape:
        raise ValueError(f"{name}: x is a single number; wanted at least one axis")
    if dtype == "int32" and readable(x) and 0 not in x.shape and not -below < int(x.min()) <= int(x.max()) < below:
        raise ValueError(
            f"{name}: x reaches from {int(x.min())} to {int(x.max())}; wanted magnitudes below {below}, requantise first"
        )


def _check_unit(name: str, unit: int, n: int, count: int, most: int = MOST) -> None:
    for what, value in (("unit", unit), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {what} is {value!r}; wanted a whole number from 1 on")
    if unit * 2**n * count > most:
        fits = (most // (unit * count)).bit_length() - 1
        advice = f"n = {fits} fits" if fits >= 1 else "no n fits; coarsen the scale"
        raise OverflowError(
            f"{name}: {count} exponentials of up to {unit} 2^{n} may sum to more than {most} and leave the accumulator; {advice}"
        )
