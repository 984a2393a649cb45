"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Method(Enum):
    compiled = "compiled"
    compacted = "compacted"
    masked = "masked"
    naive = "naive"


class Branch(Enum):
    chosen = "chosen"
    mu_3 = "mu_3"
    mu_20 = "mu_20"
    u_4 = "u_4"
    u_6 = "u_6"
    u_9 = "u_9"
    u_13 = "u_13"
    fallback = "fallback"


@dataclass(frozen=True)
class Config:
    seed: int = option(2024, "seeds points and samples")

    method: Method = option(
        Method.compiled,
        "how PyTorch evaluates; naive, a control, is the logarithm of SciPy's scaled functions and their quotient",
    )
    branch: Branch = option(Branch.chosen, "expression taken; one forced everywhere is a control")

    box_side: int = option(141, "points along each axis of the grid over [0, 150]^2")
    scales_side: int = option(70, "points along each axis of the logarithmic grid, v in 1e-3..1e5, x in 1e-6..1e6")
    backend_points: int = option(400, "points of the grids that every backend is held against 40 digits at")
    robust_points: int = option(200_000, "random points at which results that are not finite are counted")

    sizes: list[int] = option([10_000, 100_000, 1_000_000], "numbers of points in the timings")
    repeats: int = option(3, "timings of each, of which the median counts")
    mpmath_points: int = option(50, "points that mpmath is timed on")

    rows: int = option(2000, "vectors in a synthetic von Mises-Fisher sample")
    concentration: float = option(0.28, "kappa of the samples over their dimension")
    verses: int = option(600, "verses whose features are fitted")

    def __post_init__(self) -> None:
        for name in ("box_side", "scales_side"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 8 or more, so that every branch is met")
        points = self.box_side**2 + self.scales_side**2
        if not 1 <= self.backend_points <= points:
            raise ValueError(f"backend_points is {self.backend_points}; wanted 1 to {points}, the points of both grids")
        if not self.sizes or min(self.sizes) < 1000:
            raise ValueError(f"sizes is {list(self.sizes)}; wanted numbers of points from 1000 up, such as [10000,100000]")
        if self.rows < 2:
            raise ValueError(f"rows is {self.rows}; wanted 2 or more: one vector alone has no finite kappa")
        if not 0 < self.concentration < 100:
            raise ValueError(f"concentration is {self.concentration}; wanted a number above 0 and below 100, such as 0.28")


PRESETS = {
    "smoke": Config(
        box_side=12, scales_side=12, backend_points=100, robust_points=10_000, sizes=[1000, 10_000], repeats=1, mpmath_points=5,
        rows=1000, verses=100,
    ),
    "laptop": Config(),
    # The 50,000 images of CIFAR-10's training set in features of 2048, 8192 and 32,768 dimensions.
    "paper": Config(box_side=1000, scales_side=500, robust_points=10_000_000, sizes=[10**k for k in range(3, 9)], repeats=9, rows=50_000, verses=31_000),
}  # fmt: skip
