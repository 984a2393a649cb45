"""What a projection is, for both frameworks: which side, which rank, and what is refused. Imports neither framework."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import numpy as np

SIDES = ("std", "reverse_std", "left", "right", "full")
METHODS = ("svd", "randomized")
SIGNS = ("fixed", "library")


@dataclass(frozen=True)
class Projection:
    """How the gradients of a group of matrices are projected.

    Attributes:
        rank: r, the singular directions that are kept.
        gap: T, steps from one singular value decomposition to the next.
        scale: alpha, a factor on the update that is projected back.
        side: "std" projects the shorter side (a square matrix on the right), "reverse_std" the longer, "left", "right",
            or "full" for both.
        method: "svd", or "randomized" for the range finder of Halko et al. (2011, algorithm 4.4) with ``POWER``
            iterations and ``OVERSAMPLING`` more directions.
        signs: "fixed" turns every direction so that its largest entry is positive, which makes a trajectory independent
            of the library; "library" leaves them as they come, as the published code does. Moments outlive a refresh, so
            after the first one the two differ.
    """

    rank: int
    gap: int = 200
    scale: float = 0.25
    side: str = "std"
    method: str = "svd"
    signs: str = "fixed"

    def __post_init__(self) -> None:
        for name, number in (("rank", self.rank), ("gap", self.gap)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"galore: {name} is {number!r}; wanted a whole number of at least 1")
        for name, value, offered in (("side", self.side, SIDES), ("method", self.method, METHODS), ("signs", self.signs, SIGNS)):
            if value not in offered:
                raise ValueError(f"galore: {name} is {value!r}; wanted one of {', '.join(offered)}")

    def rank_for(self, name: str, shape: tuple[int, ...], strict: bool = False) -> int:
        """The rank of one parameter: at most its shorter side.

        Raises:
            ValueError: not a matrix, or in strict mode a rank beyond the shorter side.
        """
        if len(shape) != 2:
            raise ValueError(
                f"galore: parameter {name} has shape {tuple(shape)}, and only matrices can be projected; "
                "put it into a group without a rank"
            )
        if self.rank > min(shape):
            says = f"galore: rank {self.rank} is beyond the shorter side of parameter {name}, shape {tuple(shape)}"
            if strict:
                raise ValueError(f"{says}; lower it to {min(shape)}, or leave strict mode")
            warnings.warn(f"{says}; {min(shape)} is taken", stacklevel=3)
        return min(self.rank, *shape)

    def sides(self, rows: int, columns: int) -> tuple[bool, bool]:
        """(project on the left, project on the right) for a matrix of this shape."""
        if self.side == "full":
            return True, True
        tall = rows >= columns
        right = {"std": tall, "reverse_std": not tall, "left": False, "right": True}[self.side]
        return not right, right


OVERSAMPLING = 8
POWER = 2
"""Of the randomised decomposition: directions beyond the rank, and multiplications by G G^T."""


@functools.lru_cache(maxsize=32)
def gaussian(rows: int, columns: int, rank: int) -> np.ndarray:
    """The test matrix of the randomised decomposition, (columns x k): drawn here, so that both frameworks see the same."""
    k = min(rank + OVERSAMPLING, rows, columns)
    return np.random.default_rng((rows, columns, k)).standard_normal((columns, k))
