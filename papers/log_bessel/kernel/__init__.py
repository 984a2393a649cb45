"""log I_v(x), log K_v(x) and the ratio I_(v+1)(x) / I_v(x) to machine precision, where the functions themselves under- or overflow."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np
from jaxtyping import Float, Shaped

from common.ops import framework, operation, readable

from .branches import BRANCHES, which_branch

__all__ = ["BRANCHES", "bessel_ratio", "log_bessel_i", "log_bessel_k", "which_branch"]

BACKENDS = ("torch", "triton", "jax", "pallas")
VARIANTS = ("masked", "compacted", "compiled")
"""Ways of the torch backend; the others have one, masked."""


def _vjp(name: str) -> Any:
    def oracle(arguments: Mapping[str, Any], cotangents: list[np.ndarray]) -> dict[str, np.ndarray]:
        return getattr(importlib.import_module(f"{__name__}.reference"), f"vjp_{name}")(arguments, cotangents)

    return oracle


@operation(backends=BACKENDS, differentiable=("x",), tuning=("variant",), double=BACKENDS, vjp=_vjp("log_bessel_i"))
def log_bessel_i(
    order: Shaped[Any, "*order"] | float,
    x: Shaped[Any, "*x"] | float,
    *,
    branch: str | None = None,
    invalid: str = "raise",
    variant: str | None = None,
    backend: str | None = None,
) -> Float[Any, "*out"]:
    """log I_v(x), the logarithm of the modified Bessel function of the first kind, for real v >= 0 and x >= 0.

    With r = sqrt(v^2 + x^2), p = v / r and m = 4 v^2 the first of seven expressions whose region holds (v, x) is taken
    (:func:`which_branch`):

    - mu_K, K = 3, 20:  x - log(2 pi x) / 2 + log(1 + sum_k (-1)^k prod_{j<=k} (m - (2j-1)^2) / (k! (8x)^k));
    - u_K, K = 4, 6, 9, 13:  r + v log(x / (v + r)) - log(2 pi r) / 2 + log(1 + sum_k u_k(p) / v^k);
    - fallback (v < 12.7, x <= 30):  v log(x / 2) - log Gamma(v + 1) + log sum_k (x^2/4)^k / (k! (v+1)_k).

    log I_v(0) is 0 for v = 0, else -inf; log I_v(inf) is inf; NaN gives NaN. Differentiable in x to any order, by
    d log I_v / dx = v / x + I_(v+1) / I_v. The order has no gradient.

    Args:
        order, x: arrays of one framework that broadcast, or a number for one of them. Integers are promoted; float32 is
            computed in float64 and rounded (JAX without x64 and a TPU have no float64: there the error is a few units
            of float32 in the largest term, which is about max(v, x)).
        branch: one of ``BRANCHES``, to force it everywhere; its formula outside its region gives what it gives, the
            fallback NaN. The gradient is that of the function, not of the branch.
        invalid: "raise" or "nan", for negative numbers and an infinite order. Always "nan" where the values cannot be
            read without cost: on a GPU, and while traced.
        variant: torch on the CPU only. "masked" evaluates all expressions everywhere, "compacted" each on its own points,
            "compiled" likewise in parallel machine code; None takes the fastest.
        backend: "torch", "triton", "jax", "pallas" or "reference"; None chooses by the arrays' type and device.

    Returns:
        The broadcast shape; float32 where the floating inputs are, else float64 (JAX without x64: float32).

    Raises:
        ValueError: a negative or infinite order, a negative x (with the index of the first); shapes that do not broadcast;
            an order that requires a gradient; an unknown branch, variant or ``invalid``.
        TypeError: float16, bfloat16, complex or boolean arrays; arrays of two frameworks.

    Source: Plesner, Sorensen, Hauberg, arXiv 2409.08729, section 3. The fallback is a sum with all terms positive, taken
    in place of the paper's log-sum-exp (same terms, no logarithm for each).
    """
    order, x = _door("log_bessel_i", order, x, branch, invalid, variant)
    return log_bessel_i.operation(order, x, branch=branch, variant=variant, backend=backend)


@operation(backends=BACKENDS, differentiable=("x",), tuning=("variant",), double=BACKENDS, vjp=_vjp("log_bessel_k"))
def log_bessel_k(
    order: Shaped[Any, "*order"] | float,
    x: Shaped[Any, "*x"] | float,
    *,
    branch: str | None = None,
    invalid: str = "raise",
    variant: str | None = None,
    backend: str | None = None,
) -> Float[Any, "*out"]:
    """log K_v(x), the logarithm of the modified Bessel function of the second kind, for real v >= 0 and x >= 0.

    The regions are those of :func:`log_bessel_i`. With the same r, p and m:

    - mu_K:  -x + log(pi / (2x)) / 2 + log(1 + sum_k prod_{j<=k} (m - (2j-1)^2) / (k! (8x)^k));
    - u_K:  -r - v log(x / (v + r)) + log(pi / (2r)) / 2 + log(1 + sum_k (-1)^k u_k(p) / v^k);
    - fallback: K at the order mu = v - n within 1/2 of 0 by Temme's series (x <= 2) or Steed's continued fraction, then
      n steps K_(mu+1) / K_mu = K_(mu-1) / K_mu + 2 mu / x upwards, all terms positive.

    log K_v(0) is inf, log K_v(inf) is -inf; NaN gives NaN. Differentiable in x to any order, by
    d log K_v / dx = v / x - K_(v+1) / K_v. Arguments, result and errors as for :func:`log_bessel_i`.

    Source: Plesner, Sorensen, Hauberg, arXiv 2409.08729, section 3, except the fallback: in place of the paper's integral
    (Rothwell's form; Simpson's rule with 600 nodes leaves errors up to 2e-10 there) Temme, J. Comput. Phys. 19 (1975), and
    Thompson and Barnett, Comput. Phys. Commun. 47 (1987), in at most 72 steps, which also give the ratio.
    """
    order, x = _door("log_bessel_k", order, x, branch, invalid, variant)
    return log_bessel_k.operation(order, x, branch=branch, variant=variant, backend=backend)


@operation(backends=BACKENDS, differentiable=("x",), tuning=("variant",), double=BACKENDS, vjp=_vjp("bessel_ratio"))
def bessel_ratio(
    order: Shaped[Any, "*order"] | float,
    x: Shaped[Any, "*x"] | float,
    *,
    invalid: str = "raise",
    variant: str | None = None,
    backend: str | None = None,
) -> Float[Any, "*out"]:
    """R = I_(v+1)(x) / I_v(x), in [0, 1), without a difference of logarithms (which costs max(v, x) units of rounding).

    Where v^2 + x^2 > 900 the quotient of the uniform expansions of I_v' and I_v, a series in 1 / r with 13 terms; else
    the continued fraction x / (2(v+1) + x^2 / (2(v+2) + ...)), 32 steps, closed by a bound (Amos, Math. Comp. 28, 1974).
    R is 0 at x = 0 and 1 at x = inf. Differentiable in x to any order, by R' = R (1 / x + I_(v+2) / I_(v+1) - R).
    Arguments, result and errors as for :func:`log_bessel_i`.
    """
    order, x = _door("bessel_ratio", order, x, None, invalid, variant)
    return bessel_ratio.operation(order, x, variant=variant, backend=backend)


def _door(name: str, order: Any, x: Any, branch: str | None, invalid: str, variant: str | None) -> tuple[Any, Any]:
    """Both arguments as arrays of one floating dtype, or one sentence that says what is wrong."""
    for what, value, offered in (("branch", branch, BRANCHES), ("variant", variant, VARIANTS)):
        if value is not None and value not in offered:
            raise ValueError(f"{name}: {what} is {value!r}; wanted one of {', '.join(offered)}, or None")
    if invalid not in ("raise", "nan"):
        raise ValueError(f"{name}: invalid is {invalid!r}; wanted 'raise' or 'nan'")
    kinds = {framework(order), framework(x)} - {None}
    others = [type(a).__name__ for a in (order, x) if framework(a) is None and not isinstance(a, (int, float, np.number))]
    if others or len(kinds) != 1:
        found = others or [type(a).__name__ for a in (order, x)]
        raise TypeError(
            f"{name}: got {' and '.join(found)}; wanted torch tensors, jax arrays or NumPy arrays of one framework (one may be a number)"
        )
    xp = array_api_compat.array_namespace(*(a for a in (order, x) if framework(a) is not None))
    dtype = _float_type(name, xp, order, x)
    order, x = (_as_array(xp, a, other, dtype) for a, other in ((order, x), (x, order)))
    try:
        np.broadcast_shapes(tuple(order.shape), tuple(x.shape))
    except ValueError:
        raise ValueError(
            f"{name}: order has shape {tuple(order.shape)} and x {tuple(x.shape)}; wanted shapes that broadcast"
        ) from None
    if invalid == "raise" and readable(order) and readable(x):
        _refuse(name, "order", order, np.inf, "0 <= order < inf")
        _refuse(name, "x", x, np.nan, "x >= 0")
    return order, x


def _float_type(name: str, xp: Any, *values: Any) -> Any:
    kinds = [str(value.dtype).rpartition(".")[2] for value in values if framework(value) is not None]
    refused = [kind for kind in kinds if kind not in ("float32", "float64") and "int" not in kind]
    if refused:
        raise TypeError(f"{name}: got {refused[0]}; wanted float32, float64 or integers, so convert first")
    floats = [kind for kind in kinds if "float" in kind]
    if floats:
        return getattr(xp, max(floats))
    # Integers alone: the widest float there is, which JAX without x64 says to be float32.
    return xp.result_type(float) if "jax" in xp.__name__ else xp.float64


def _as_array(xp: Any, value: Any, other: Any, dtype: Any) -> Any:
    if framework(value) is None:
        return (
            xp.full((), float(value), dtype=dtype, device=other.device)
            if "torch" in xp.__name__
            else xp.full((), value, dtype=dtype)
        )
    return value if value.dtype == dtype else xp.astype(value, dtype)


def _refuse(name: str, what: str, array: Any, excluded: float, wanted: str) -> None:
    """Refuse negative numbers and ``excluded``. NumPy looks: torch's threads would spin on cores that the work needs next."""
    values = np.asarray(array.detach() if framework(array) == "torch" else array)
    if not values.size or (values.min() >= 0 and values.max() != excluded):
        return
    bad = (values < 0) | (values == excluded)
    if not bad.any():
        return
    index = tuple(map(int, np.unravel_index(int(bad.argmax()), bad.shape)))
    where = f" at index {index if len(index) > 1 else index[0]}" if index else ""
    raise ValueError(f"{name}: {what}{where} is {float(values[index])}; wanted {wanted} (invalid='nan' gives NaN there instead)")
