"""Counter-based Gaussian noise: z is a function of (seed, parameter, element), so it is drawn again instead of stored.

The integers are those of Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011), the same in every backend; the normals come
from them by Box and Muller (1958) and differ between backends by roundings of the logarithm and the cosine alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt32

from common.ops import framework, operation

__all__ = ["gaussian", "perturb", "philox", "seed_words"]

BACKENDS = ("torch", "triton", "jax", "pallas")
LARGEST = 2**34
"""Elements of one parameter that the 32-bit block counter reaches."""


@operation(backends=BACKENDS, exact=True)
def philox(counter: UInt32[Any, "n 4"], key: UInt32[Any, " 2"], *, backend: str | None = None) -> UInt32[Any, "n 4"]:
    """Philox4x32-10: ten rounds that turn a counter of four 32-bit words under a key of two into four random words.

    A round, with M = (0xD2511F53, 0xCD9E8D57) and high and low halves of the 64-bit products:

        (c0, c1, c2, c3) -> (high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1, low(M0 c0))

    and after each but the last, k += (0x9E3779B9, 0xBB67AE85) modulo 2^32. Exact in every backend.

    Raises:
        TypeError: arrays that are not uint32. ValueError: other shapes.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    for name, array in (("counter", counter), ("key", key)):
        if str(array.dtype).rpartition(".")[2] != "uint32":
            raise TypeError(f"philox: {name} is {array.dtype}; wanted uint32")
    if len(counter.shape) != 2 or counter.shape[1] != 4 or tuple(key.shape) != (2,):
        raise ValueError(f"philox: counter has shape {tuple(counter.shape)} and key {tuple(key.shape)}; wanted (n, 4) and (2,)")
    return philox.operation(counter, key, backend=backend)


@operation(backends=BACKENDS)
def gaussian(
    like: Float[Any, "*shape"], *, seed: Any, parameter: Any = 0, offset: int = 0, backend: str | None = None
) -> Float[Any, "*shape"]:
    """z ~ N(0, 1), shaped like ``like`` and in its dtype, a function of seed, parameter and element alone.

    Element e of the flat array (counted from ``offset``) is one of four that come from the words w of

        philox(counter = (e // 4, 0, parameter, 0), key = (seed mod 2^32, seed // 2^32))
        u_i = (w_i // 2^9 + 1/2) 2^-23,   r_i = sqrt(-2 log u_i)
        z = (r_0 cos 2 pi u_1, r_0 sin 2 pi u_1, r_2 cos 2 pi u_3, r_2 sin 2 pi u_3)[e mod 4]

    The u are exact in float32, so all dtypes see the same points; |z| is at most sqrt(48 log 2) = 5.77.

    Args:
        like: gives shape, dtype, framework and device; its values are not read.
        seed: 0 <= seed < 2^64; or an array of two uint32, low word first (JAX: so that a compiled step takes any seed).
        parameter: which stream of the seed, 0 <= parameter < 2^32: the index of the parameter (JAX: or a uint32 scalar).
        offset: element that the first one is, for a slice of a parameter.

    Returns:
        Computed in float64 where ``like`` is (PyTorch, JAX), else in float32 and rounded.

    Raises:
        ValueError: seed, parameter or offset out of range; an array that reaches beyond element 2^34.
        TypeError: dtypes that are not real floats.
    """
    options = _door("gaussian", like, seed, parameter, offset)
    return gaussian.operation(like, **options, backend=backend)


@operation(backends=BACKENDS)
def perturb(
    theta: Float[Any, "*shape"],
    *,
    scale: Any,
    seed: Any,
    parameter: Any = 0,
    offset: int = 0,
    keep: Any = 1.0,
    out: Any = None,
    backend: str | None = None,
) -> Float[Any, "*shape"]:
    """keep * theta + scale * z without ever having z: the perturbation and, with a decay in ``keep``, the update of MeZO.

    z is :func:`gaussian`'s for the same seed, parameter and offset, in the precision that it is computed in: 16-bit weights
    are widened to float32 and rounded once.

    Args:
        theta: weights.
        scale, keep: numbers (JAX: or scalars that are traced).
        out: PyTorch only; a contiguous tensor like theta that takes the result, theta itself for an update in place.
        seed, parameter, offset: see :func:`gaussian`.

    Raises:
        ValueError, TypeError: as :func:`gaussian`; an ``out`` of another shape, dtype or device, or not contiguous.

    Source: Malladi et al. 2023, algorithm 1, where z is drawn again from the seed at each use.
    """
    options = _door("perturb", theta, seed, parameter, offset)
    if out is not None:
        if framework(theta) != "torch":
            raise TypeError(f"perturb: out= works in place and is for torch tensors, got {framework(theta)} arrays")
        if out.shape != theta.shape or out.dtype != theta.dtype or out.device != theta.device or not out.is_contiguous():
            raise ValueError(
                f"perturb: out is {out.dtype}{tuple(out.shape)}; wanted a contiguous {theta.dtype}{tuple(theta.shape)} on {theta.device}"
            )
        options["out"] = out
    return perturb.operation(theta, scale=scale, keep=keep, **options, backend=backend)


def seed_words(seed: int) -> np.ndarray:
    """A seed as the key of Philox: two uint32, the low word first."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; wanted 0 <= seed < 2^64")
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)


def _door(name: str, like: Any, seed: Any, parameter: Any, offset: int) -> dict[str, Any]:
    kind = str(getattr(like, "dtype", type(like))).rpartition(".")[2]
    if kind not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"{name}: got {kind}; wanted an array of float16, bfloat16, float32 or float64")
    if framework(seed) is None:
        seed_words(int(seed))
    if framework(parameter) is None and not 0 <= parameter < 2**32:
        raise ValueError(f"{name}: parameter is {parameter}; wanted 0 <= parameter < 2^32")
    count = int(np.prod(like.shape, dtype=np.int64))
    if offset < 0 or offset + count > LARGEST:
        raise ValueError(f"{name}: elements {offset} to {offset + count}; wanted a range within 0 to 2^34")
    return {"seed": seed, "parameter": parameter, "offset": offset}
