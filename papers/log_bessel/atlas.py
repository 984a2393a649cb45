"""The atlas: values of both functions over the quadrant to 40 digits, rounded, in a file beside the tests.

``python -m papers.log_bessel.atlas`` makes it anew (a minute) and, while it does, holds the definition against what does
not share its formulas: the Wronskian at every point, and ``mpmath.besseli`` and ``besselk`` where these can be had.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from common import ROOT
from common.checkpoint import write_whole

from .kernel import cases

PATH = ROOT / "tests" / "papers" / "log_bessel_atlas.npz"
COLUMNS = ("order", "x", "log_i", "log_k", "ratio_i", "ratio_k", "slope_i", "slope_k", "bend_i", "bend_k")
"""ratio: the function of the next order over this one; slope and bend: first and second derivative in x of the logarithm."""


def load() -> dict[str, np.ndarray]:
    """The columns of the atlas, each float64 of the same length."""
    with np.load(PATH, allow_pickle=False) as file:
        return {name: file[name] for name in COLUMNS}


def points(rng: np.random.Generator, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Four regions, ``each`` points of them: all scales, the box [0, 150]^2, the fallback's corner, half-integers; then borders."""
    whole = 10 ** rng.uniform(-3, 5, each), 10 ** rng.uniform(-6, 6, each)
    box = rng.uniform(0, 150, each), rng.uniform(1e-6, 150, each)
    corner = rng.uniform(0, 13, each), rng.uniform(1e-6, 31, each)
    halves = rng.integers(0, 60, each) / 2, 10 ** rng.uniform(-6, 6, each)
    named = np.array([0.0, 16383.0, 1e5, 0.0, 1e5]), np.array([1e-6, 100.0, 1e-6, 1e6, 1e6])
    order, x = (np.concatenate(column) for column in zip(whole, box, corner, halves, cases.borders(), named, strict=True))
    return order, x


def make(each: int = 700, seed: int = 0) -> dict[str, np.ndarray]:
    """Compute the atlas from the definition; raises AssertionError where the definition contradicts itself or mpmath."""
    import mpmath

    from .kernel.reference import DIGITS, bessel_i, bessel_k

    rng = np.random.default_rng(seed)
    order, x = points(rng, each)
    rows: list[tuple[Any, ...]] = []
    checked = 0
    for number, (v, z) in enumerate(zip(order.tolist(), x.tolist(), strict=True)):
        with mpmath.workdps(DIGITS + 10):
            (log_i, ratio_i), (log_k, ratio_k) = bessel_i(v, z), bessel_k(v, z)
            size = 1 + abs(log_i)
            # I_v K_(v+1) + I_(v+1) K_v = 1 / x
            assert abs(log_i + log_k + mpmath.log(z * (ratio_i + ratio_k))) < size * mpmath.mpf(10) ** -DIGITS, (v, z)
            quotient = v / mpmath.mpf(z)
            slopes = quotient + ratio_i, quotient - ratio_k
            # f'' + f' / x = (1 + v^2 / x^2) f for both
            bends = (1 + quotient**2 - slope / z - slope**2 for slope in slopes)
            rows.append((v, z, log_i, log_k, ratio_i, ratio_k, *slopes, *bends))
        if number % 10 == 0 and v < 3000 and 1e-3 < z < 2000:
            # At fewer digits besselk is wrong where v and x are both some hundreds.
            with mpmath.workdps(3 * DIGITS):
                for mine, theirs in ((log_i, mpmath.besseli(v, z)), (log_k, mpmath.besselk(v, z))):
                    assert abs(mine - mpmath.log(theirs)) < size * mpmath.mpf(10) ** -(DIGITS - 2), (v, z)
            checked += 1
    print(f"{len(rows)} points, all by the Wronskian, {checked} of them against mpmath.besseli and besselk")
    table = np.array([[float(entry) for entry in row] for row in rows])
    return dict(zip(COLUMNS, np.ascontiguousarray(table.T), strict=True))


def errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Relative where the logarithm is larger than 1, absolute where it is within 1 of zero; inf for what is not finite."""
    gap = np.abs(got - want) / np.maximum(np.abs(want), 1)
    return np.where(np.isfinite(got), gap, math.inf)


def main() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **make())
    write_whole(PATH, buffer.getvalue())
    print(f"{PATH.relative_to(ROOT)}: {PATH.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
