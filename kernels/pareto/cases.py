"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"float64": 0.0, "float32": 0.0}
# The sum over tens of thousands of samples is taken in another order in every backend.
_SHARES = {"float64": 1e-9, "float32": 1e-5}


def _points(rng: np.random.Generator, n: int, m: int, levels: int = 0, special: bool = False) -> np.ndarray:
    """Uniform points; with ``levels`` many are equal in some objective or in all; ``special``: infinite values and -0.0."""
    points = rng.integers(0, levels, (n, m)).astype(np.float64) if levels else rng.random((n, m))
    if special:
        points[:: max(n // 3, 1), 0] = np.inf
        points[1 :: max(n // 3, 1), -1] = -np.inf
        points[points == 0] = -0.0
        points[2::5] = np.abs(points[2::5])
    return points


def _pair(n: int, k: int, m: int, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"points": _points(rng, n, m, **options), "by": _points(rng, k, m, **options)}


def _with_nan(rng: np.random.Generator) -> dict[str, Any]:
    made = _pair(40, 30, 3)(rng)
    made["points"][3, 1] = made["by"][5, 0] = np.nan
    return made


def _ranked(n: int, m: int, enough: int | None = None, **options: Any) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"points": _points(rng, n, m, **options), "enough": enough}


def _crowd(n: int, m: int, fronts: int, levels: int = 0) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"points": _points(rng, n, m, levels), "rank": rng.integers(0, fronts, n).astype(np.int32)}


def _volume(n: int, m: int, levels: int = 0, top: float = 0.9) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"points": _points(rng, n, m, levels), "reference_point": np.full(m, top)}


def _shares(n: int, s: int, m: int, levels: int | None = None) -> Callable[[np.random.Generator], dict[str, Any]]:
    return lambda rng: {"points": rng.random((n, m)), "samples": rng.random((s, m)), "alpha": rng.random(levels or n + 1)}


CASES = {
    "dominance_count": [
        Case("small", _pair(7, 5, 2), EXACT),
        Case("ragged", _pair(130, 67, 3, levels=4), EXACT),
        Case("special", _pair(40, 40, 2, levels=3, special=True), EXACT),
        Case("nan", _with_nan, EXACT),
        Case("none", _pair(3, 0, 3), EXACT),
        Case("large", _pair(8192, 8192, 3), EXACT, large=True),
    ],
    "non_dominated_rank": [
        Case("small", _ranked(7, 2), EXACT),
        Case("ties", _ranked(150, 3, levels=5), EXACT),
        Case("special", _ranked(60, 2, levels=4, special=True), EXACT),
        Case("enough", _ranked(90, 3, enough=30), EXACT),
        Case("one objective", _ranked(20, 1, levels=6), EXACT),
        Case("nothing", _ranked(0, 3), EXACT),
        Case("large", _ranked(8192, 3), EXACT, large=True),
    ],
    "crowding_distance": [
        Case("small", _crowd(9, 2, 1)),
        Case("fronts", _crowd(70, 3, 6)),
        Case("ties", _crowd(60, 2, 4, levels=3)),
        Case("nothing", _crowd(0, 2, 1)),
        Case("large", _crowd(16384, 3, 40), large=True),
    ],
    "hypervolume": [
        Case("plane", _volume(12, 2)),
        Case("space", _volume(11, 3)),
        Case("ties", _volume(12, 3, levels=3, top=2.0)),
        Case("beyond", _volume(6, 3, top=0.2)),
        Case("nothing", _volume(0, 3)),
        Case("large", _volume(1024, 3), large=True),
    ],
    "hype_fitness": [
        Case("small", _shares(5, 40, 2), _SHARES),
        Case("ragged", _shares(33, 1001, 3), _SHARES),
        Case("four", _shares(20, 300, 4), _SHARES),
        Case("few weights", _shares(20, 300, 2, levels=3), _SHARES),
        Case("large", _shares(1000, 10_000, 3), _SHARES, large=True),
    ],
}  # fmt: skip


def _pymoo(points: Any, enough: Any = None) -> Any:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    return NonDominatedSorting().do(np.asarray(points, np.float64), return_rank=True)[1]


def _evox(points: Any, enough: Any = None) -> Any:
    import torch
    from evox.operators.selection import non_dominate_rank

    return non_dominate_rank(torch.as_tensor(np.asarray(points)))


def _moocore(points: Any, reference_point: Any) -> Any:
    import moocore

    return moocore.hypervolume(np.asarray(points, np.float64), ref=np.asarray(reference_point, np.float64))


def _installed(**peers: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {name: function for name, function in peers.items() if importlib.util.find_spec(name)}


PEERS = {
    "non_dominated_rank": _installed(pymoo=_pymoo, evox=_evox),
    "hypervolume": _installed(moocore=_moocore),
}
