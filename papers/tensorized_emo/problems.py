"""Test problems with known fronts, as one text for NumPy, PyTorch and JAX; those of robots are in ``robots.py``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from papers.tensorized_emo.operators import reference_points


@dataclass(frozen=True)
class Problem:
    """f: [lower, upper]^d -> R^m, all objectives minimised.

    Attributes:
        evaluate: the objectives (n, m) of decision vectors (n, d), in the framework of its argument.
        lower, upper: bounds, float64 (d,).

    Raises:
        ValueError: bounds of different shapes, a lower bound that is not below the upper one, fewer than two objectives.
    """

    name: str
    evaluate: Callable[[Any], Any]
    lower: Float[np.ndarray, " d"]
    upper: Float[np.ndarray, " _"]  # its length is checked below
    m: int

    def __post_init__(self) -> None:
        if self.lower.ndim != 1 or self.lower.shape != self.upper.shape:
            raise ValueError(f"{self.name}: bounds of shapes {self.lower.shape} and {self.upper.shape}; wanted two equal (d,)")
        if not (self.lower < self.upper).all():
            where = int(np.argmin(self.lower < self.upper))
            raise ValueError(
                f"{self.name}: gene {where} has the bounds {self.lower[where]:g} and {self.upper[where]:g}; "
                "wanted the lower below the upper"
            )
        if self.m < 2:
            raise ValueError(f"{self.name}: {self.m} objective; one alone has no front: take a single-objective method")

    @property
    def d(self) -> int:
        return len(self.lower)


def dtlz(number: int, d: int | None = None, m: int = 3) -> Problem:
    """DTLZ1 to DTLZ7 with m objectives and d variables in [0, 1]: m - 1 choose the place on the front, the rest the distance.

    Source: Deb, Thiele, Laumanns, Zitzler 2005.
    """
    if number not in _DTLZ:
        raise ValueError(f"there is no DTLZ{number} here; wanted one of 1 to 7")
    d = m - 1 + {1: 5, 7: 20}.get(number, 10) if d is None else d
    if d < m:
        raise ValueError(f"DTLZ{number}: {d} variables for {m} objectives; wanted at least {m}")
    function = _DTLZ[number]
    return Problem(f"DTLZ{number}", lambda x: function(x, m), np.zeros(d), np.ones(d), m)


def front(number: int, n: int = 1000, m: int = 3) -> Float[np.ndarray, "points m"]:
    """About n points of the true front of DTLZ1 to DTLZ4, evenly spread; other fronts are not flat or round."""
    if number not in (1, 2, 3, 4):
        raise ValueError(f"the front of DTLZ{number} is not given here; wanted one of 1 to 4")
    points = np.where(reference_points(n, m) > 2e-6, reference_points(n, m), 0.0)
    return points / 2 if number == 1 else points / np.linalg.norm(points, axis=1, keepdims=True)


def on_grid(problem: Problem, step: float = 2.0**-20) -> Problem:
    """The problem with its objectives rounded to multiples of ``step``.

    Points that share genes are often equal in an objective but for the last bit, which depends on the order of a sum. On a
    grid they are equal everywhere, so that two implementations see the same ties and can be compared over generations.
    """

    def evaluate(x: Any) -> Any:
        return array_namespace(x).round(problem.evaluate(x) / step) * step

    return replace(problem, name=f"{problem.name} on a grid", evaluate=evaluate)


def _shape(xp: Any, first: Any, second: Any) -> Any:
    """Columns f_k = prod_{i < m-k} first_i * second_{m-k}: how every DTLZ but the last spreads over its front."""
    columns, product = [], xp.ones_like(first[:, 0])
    for i in range(first.shape[1]):
        columns.append(product * second[:, i])
        product = product * first[:, i]
    return xp.stack([product, *columns[::-1]], axis=1)


def _rastrigin(xp: Any, x: Any) -> Any:
    y = x - 0.5
    return 100 * (x.shape[1] + (y**2 - xp.cos(20 * math.pi * y)).sum(axis=1))


def _sphere(x: Any) -> Any:
    return ((x - 0.5) ** 2).sum(axis=1)


def _round(xp: Any, angle: Any, g: Any) -> Any:
    """Points of a sphere of radius 1 + g; ``angle`` in units of a right angle."""
    angle = angle * (math.pi / 2)
    # In float32 the cosine of a right angle is below zero, and a point far from the front would win by that.
    cosine = xp.cos(angle)
    cosine = xp.where(cosine > 0, cosine, xp.zeros_like(cosine))
    return (1 + g)[:, None] * _shape(xp, cosine, xp.sin(angle))


def _dtlz1(x: Any, m: int) -> Any:
    xp = array_namespace(x)
    g = _rastrigin(xp, x[:, m - 1 :])
    return 0.5 * (1 + g)[:, None] * _shape(xp, x[:, : m - 1], 1 - x[:, : m - 1])


def _dtlz2(x: Any, m: int) -> Any:
    return _round(array_namespace(x), x[:, : m - 1], _sphere(x[:, m - 1 :]))


def _dtlz3(x: Any, m: int) -> Any:
    xp = array_namespace(x)
    return _round(xp, x[:, : m - 1], _rastrigin(xp, x[:, m - 1 :]))


def _dtlz4(x: Any, m: int) -> Any:
    return _round(array_namespace(x), x[:, : m - 1] ** 100, _sphere(x[:, m - 1 :]))


def _bent(x: Any, m: int, g: Any) -> Any:
    xp = array_namespace(x)
    rest = (1 + 2 * g[:, None] * x[:, 1 : m - 1]) / (2 * (1 + g[:, None]))
    return _round(xp, xp.concat([x[:, :1], rest], axis=1), g)


def _dtlz5(x: Any, m: int) -> Any:
    return _bent(x, m, _sphere(x[:, m - 1 :]))


def _dtlz6(x: Any, m: int) -> Any:
    return _bent(x, m, (x[:, m - 1 :] ** 0.1).sum(axis=1))


def _dtlz7(x: Any, m: int) -> Any:
    xp = array_namespace(x)
    place, g = x[:, : m - 1], 1 + 9 * x[:, m - 1 :].mean(axis=1)
    h = m - (place / (1 + g)[:, None] * (1 + xp.sin(3 * math.pi * place))).sum(axis=1)
    return xp.concat([place, ((1 + g) * h)[:, None]], axis=1)


_DTLZ: dict[int, Callable[[Any, int], Any]] = {
    1: _dtlz1, 2: _dtlz2, 3: _dtlz3, 4: _dtlz4, 5: _dtlz5, 6: _dtlz6, 7: _dtlz7,
}  # fmt: skip
