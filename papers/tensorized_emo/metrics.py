"""How good a set of points is, and whether one method's sets are worse than another's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from kernels.pareto import hypervolume as exact_hypervolume
from kernels.pareto import non_dominated_rank


def igd(f: Float[np.ndarray, "n m"], front: Float[np.ndarray, "k m"]) -> float:
    """Inverted generational distance: the mean distance from a point of the true front to the nearest point found."""
    from scipy.spatial import cKDTree

    return float(cKDTree(f).query(front)[0].mean())


def hypervolume(f: Float[np.ndarray, "n m"], corner: Float[np.ndarray, " m"]) -> float:
    """Exact hypervolume of the points up to a corner, for 2 and 3 objectives."""
    import torch

    inside = f[(f < corner).all(axis=1)]
    return float(exact_hypervolume(torch.from_numpy(np.asarray(inside, np.float64)), torch.from_numpy(corner)))


def sampled_hypervolume(f: Float[np.ndarray, "n m"], corner: Float[np.ndarray, " m"], u: Float[np.ndarray, "s m"]) -> float:
    """The share of uniform samples between the best values and the corner that some point dominates, times the volume."""
    from kernels.pareto import hype_fitness

    low = np.minimum(f.min(axis=0), corner)
    share = np.append(0.0, 1 / np.arange(1, len(f) + 1))
    return float(hype_fitness(f, low + u * (corner - low), share).sum() * (corner - low).prod())


def expected_utility(f: Float[np.ndarray, "n m"], preferences: Float[np.ndarray, "k m"]) -> float:
    """The mean, over preferences w, of the best -w.f: what users who weigh the objectives differently get."""
    return float((-preferences @ f.T).max(axis=1).mean())


def first_front(f: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, " n"]:
    """Which points none dominates."""
    import torch

    return non_dominated_rank(torch.from_numpy(np.asarray(f, np.float64)), enough=1).numpy() == 0


def p_worse(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """One-sided Mann-Whitney: how likely such ranks are if mine are not larger; small where mine are larger, which is worse."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(mine, theirs, alternative="greater").pvalue)
