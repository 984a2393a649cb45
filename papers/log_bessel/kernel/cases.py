"""Inputs that meet every branch of both functions, its borders and the corners of the quadrant; and what others offer."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np

from common.ops import Case

from .branches import BRANCHES, MU, UNIFORM, which_branch

TOLERANCE = {"float64": 1e-14, "float32": 1e-6}
WHY = (
    "float64: rounding of the largest value. float32: JAX without x64 computes in it, where the terms of r + v log(x / (v + r)) "
    "are rounded before they cancel; torch and Triton compute in float64. Point by point, test_log_bessel_kernel asks for more"
)


def interior(rng: np.random.Generator, each: int) -> tuple[np.ndarray, np.ndarray]:
    """``each`` points (order, x) well within the reach of each of the seven branches, values below a few hundred."""
    order, x = rng.uniform(0, 200, 400 * each), rng.uniform(0.3, 330, 400 * each)
    # mu_3 and the fallback are narrow in the order.
    order[::2] = rng.uniform(0, 13, order[::2].shape)
    x[::4] = rng.choice([1, 6], x[::4].shape) * rng.uniform(0.3, 330, x[::4].shape)
    chosen = which_branch(order, x)
    picked = np.concatenate([np.flatnonzero(chosen == branch)[:each] for branch in range(len(BRANCHES))])
    assert picked.size == each * len(BRANCHES)
    return order[picked], x[picked]


def borders() -> tuple[np.ndarray, np.ndarray]:
    """Points one unit in the last place below and above each threshold, at places where it is what decides."""
    pairs = []
    for above, limit in MU:
        pairs += [(v, x) for v in (0.0, 1.0, 0.9 * limit) for x in _around(above)]
        pairs += [(v, x) for v in _around(limit) for x in (1.2 * above,)]
    for above, least, alone in UNIFORM:
        pairs += [(v, x) for v in (1.1 * least + 15.4, 0.98 * alone) for x in _around(above)]
        pairs += [(v, x) for v in _around(alone) for x in (0.7, 0.4 * above)]
    pairs += [(v, x) for v in (0.0, 0.3, 12.5) for x in (*_around(2.0), *_around(6.0))]
    order, x = np.array(pairs).T
    return order, x


def _around(value: float) -> tuple[float, float]:
    return float(np.nextafter(value, 0)), float(np.nextafter(value, np.inf))


def _points(rng: np.random.Generator) -> dict[str, Any]:
    v, x = interior(rng, 9)
    v_border, x_border = borders()
    special = np.array(
        [
            (0, 0),
            (0.5, 0),
            (7, 0),
            (0, np.inf),
            (3, np.inf),
            (np.nan, 1),
            (1, np.nan),
            (0, 0.3),
            (0.5, 1),
            (1.5, 20),
            (9.5, 5),
            (20.5, 40),
        ]
    )
    return {"order": np.concatenate([v, v_border, special[:, 0]]), "x": np.concatenate([x, x_border, special[:, 1]])}


def _grid(rng: np.random.Generator) -> dict[str, Any]:
    order = np.array([0, 0.25, 0.5, 3, 12.6, 14, 100, 1000.5, 16383, 1e5])[:, None]
    return {"order": order, "x": np.array([1e-6, 1e-3, 0.1, 1.7, 9, 100, 1500, 1e6])}


def _mixed(rng: np.random.Generator) -> dict[str, Any]:
    """Half uniform over [0, 150]^2, half log-uniform over orders to 1e5 and arguments from 1e-6 to 1e6."""
    half = 500_000
    order = np.concatenate([rng.uniform(0, 150, half), 10 ** rng.uniform(-2, 5, half)])
    x = np.concatenate([rng.uniform(1e-6, 150, half), 10 ** rng.uniform(-6, 6, half)])
    mixed = rng.permutation(2 * half)
    return {"order": order[mixed], "x": x[mixed]}


_EMPTY = Case("empty", lambda rng: {"order": np.zeros((2, 1)), "x": np.zeros(0)}, {"float64": 0.0}, backends=("torch", "triton"))
# A case is compiled for each dtype and framework: values vary within few shapes, float32 on the grid, float64 on the points.
_CASES = [
    Case("points", _points, {"float64": TOLERANCE["float64"]}, WHY),
    Case("grid", _grid, {"float32": TOLERANCE["float32"]}, WHY),
    _EMPTY,
    Case("a million", _mixed, {"float64": 1e-12}, large=True),
]
CASES = {"log_bessel_i": _CASES, "log_bessel_k": _CASES, "bessel_ratio": _CASES}


def _torch(function: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """A NumPy function as a peer that takes and returns torch tensors."""

    @functools.wraps(function)
    def peer(order: Any, x: Any, **_: Any) -> Any:
        import torch

        return torch.from_numpy(function(order.detach().numpy(), x.detach().numpy()))

    return peer


@_torch
def scipy_log_i(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    from scipy.special import ive

    with np.errstate(divide="ignore"):
        return np.log(ive(order, x)) + x


@_torch
def scipy_log_k(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    from scipy.special import kve

    with np.errstate(divide="ignore", over="ignore"):
        return np.log(kve(order, x)) - x


@_torch
def scipy_ratio(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    from scipy.special import ive

    with np.errstate(invalid="ignore", divide="ignore"):
        return ive(order + 1, x) / ive(order, x)


@_torch
def gsl_log_i(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(_gsl("gsl_sf_bessel_Inu_scaled")(order, x)) + x


@_torch
def gsl_log_k(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _gsl("gsl_sf_bessel_lnKnu")(order, x)


STRIDE = 20_000


@_torch
def mpmath_log_i(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _sampled("besseli", order, x)


@_torch
def mpmath_log_k(order: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _sampled("besselk", order, x)


def _sampled(name: str, order: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Every STRIDE-th point at 20 digits; NaN where mpmath gives up on its series."""
    import mpmath

    def value(v: float, z: float) -> float:
        try:
            return float(mpmath.log(getattr(mpmath, name)(v, z)))
        except mpmath.mp.NoConvergence:
            return np.nan

    with mpmath.workdps(20):
        return np.array([value(*pair) for pair in zip(order[::STRIDE].tolist(), x[::STRIDE].tolist(), strict=True)])


@functools.cache
def _gsl(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """One function of the GNU Scientific Library in a compiled loop, so that a call from Python is not what is timed."""
    from numba import njit

    library = ctypes.CDLL(GSL)
    library.gsl_set_error_handler_off()
    function = getattr(library, name)
    function.argtypes, function.restype = [ctypes.c_double, ctypes.c_double], ctypes.c_double

    @njit
    @no_type_check
    def loop(order, x):
        out = np.empty(x.size)
        for i in range(x.size):
            out[i] = function(order[i], x[i])
        return out

    return lambda order, x: loop(*(np.ascontiguousarray(a).ravel() for a in np.broadcast_arrays(order, x)))


GSL = ctypes.util.find_library("gsl")
MISSING = {} if GSL else {"GSL": "the library is not installed (Debian: apt-get install libgsl27)"}
"""Peers that are left out on this machine, and why."""

_SAMPLE = f"mpmath (1 point of {STRIDE:,})"
PEERS: dict[str, dict[str, Callable[..., Any]]] = {
    "log_bessel_i": {"SciPy": scipy_log_i, **({"GSL": gsl_log_i} if GSL else {}), _SAMPLE: mpmath_log_i},
    "log_bessel_k": {"SciPy": scipy_log_k, **({"GSL": gsl_log_k} if GSL else {}), _SAMPLE: mpmath_log_k},
    "bessel_ratio": {"SciPy": scipy_ratio},
}
