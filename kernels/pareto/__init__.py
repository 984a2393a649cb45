"""Pareto dominance and hypervolume: what every multi-objective search sorts and scores its points by. Objectives are minimised.

Point a dominates point b if it is nowhere worse and somewhere better: all_k a_k <= b_k and any_k a_k < b_k.
"""

from __future__ import annotations

import warnings
from typing import Any

from jaxtyping import Float, Int32

from common.ops import operation, readable

__all__ = ["crowding_distance", "dominance_count", "hype_fitness", "hypervolume", "non_dominated_rank"]


@operation(backends=("torch", "triton", "jax", "pallas"), exact=True, tuning=("block",))
def dominance_count(
    points: Float[Any, "n m"], by: Float[Any, "k m"], *, block: int | None = None, backend: str | None = None
) -> Int32[Any, " n"]:
    """c_j = #{i : by_i dominates points_j}, in tiles: memory O(block (n + k)) however many pairs there are.

    A row that holds a NaN dominates nothing and is dominated by nothing. Pallas and Triton compare in float32.

    Args:
        block: rows of ``by`` that are compared at once.

    Raises:
        ValueError: other shapes than (n, m) and (k, m), or m = 0.

    Source: Liang et al., TensorEMO (arXiv 2503.20286), section on the tensorised non-dominated sort; the tiling is not theirs.
    """
    _check_points("dominance_count", points)
    _check_points("dominance_count", by, "by")
    if points.shape[1] != by.shape[1]:
        raise ValueError(f"dominance_count: points have {points.shape[1]} objectives, by has {by.shape[1]}; wanted the same")
    _check_block("dominance_count", block)
    return dominance_count.operation(points, by, block=block, backend=backend)


@operation(backends=("torch", "triton", "jax"), exact=True, tuning=("block",))
def non_dominated_rank(
    points: Float[Any, "n m"], *, enough: int | None = None, block: int | None = None, backend: str | None = None
) -> Int32[Any, " n"]:
    """The number of the front of each point, from 0: front r holds what only points of the fronts before it dominate.

        c_j = #{i : i dominates j};  front = (c == 0);  c_j -= #{i in front : i dominates j};  and so on

    Args:
        enough: fronts are peeled until so many points have a rank; the others get the next number, all the same one.
        block: points of a front that are compared at once.

    Returns:
        int32. Rows with a NaN come last, in a front of their own, with a warning where values can be read (not in a compiled
        program). Triton compares in float32.

    Raises:
        ValueError: points not of shape (n, m), m = 0, enough below 1.

    Source: Liang et al., TensorEMO (arXiv 2503.20286), section on the tensorised non-dominated sort.
    """
    _check_points("non_dominated_rank", points)
    _check_block("non_dominated_rank", block)
    if enough is not None and enough < 1:
        raise ValueError(f"non_dominated_rank: enough is {enough}; wanted at least 1, or None for all fronts")
    if readable(points) and bool((points != points).any()):
        warnings.warn("non_dominated_rank: some rows hold a NaN; they are ranked last", stacklevel=2)
    return non_dominated_rank.operation(points, enough=enough, block=block, backend=backend)


@operation(backends=("torch", "jax"))
def crowding_distance(points: Float[Any, "n m"], rank: Int32[Any, " n"], *, backend: str | None = None) -> Float[Any, " n"]:
    """d_i = sum_k (f_k of the next point - f_k of the one before) / (max f_k - min f_k), neighbours in i's own front.

    The first and the last of a front in any objective have an infinite distance. An objective in which a front does not
    vary adds nothing to its inner points. Equal values keep the order of their rows.

    Source: Deb et al. 2002, NSGA-II, section III B.
    """
    _check_points("crowding_distance", points)
    if tuple(rank.shape) != (points.shape[0],):
        raise ValueError(f"crowding_distance: rank has the shape {tuple(rank.shape)}; wanted ({points.shape[0]},)")
    return crowding_distance.operation(points, rank, backend=backend)


@operation(backends=("torch", "jax"), tuning=("block",))
def hypervolume(
    points: Float[Any, "n m"], reference_point: Float[Any, " m"], *, block: int | None = None, backend: str | None = None
) -> Float[Any, ""]:
    """The volume that is dominated by the points and dominates the reference point; exact, for m = 2 and 3.

    The last axis is swept: between two neighbouring values of it lies a slab, whose base is the area under the running
    minimum of the points seen so far. Points beyond the reference point count as lying on it.

    Args:
        block: slabs that are computed at once; memory O(block n).

    Raises:
        ValueError: shapes that do not fit; other m than 2 and 3 (take the mean of ``hype_fitness`` samples there).

    Source: the definition of Zitzler and Thiele 1998; the sweep is folklore.
    """
    _check_points("hypervolume", points)
    if tuple(reference_point.shape) != (points.shape[1],):
        raise ValueError(
            f"hypervolume: the reference point has the shape {tuple(reference_point.shape)}; wanted ({points.shape[1]},)"
        )
    if points.shape[1] not in (2, 3):
        raise ValueError(
            f"hypervolume: exact for 2 and 3 objectives, got {points.shape[1]}; estimate it by samples (hype_fitness) instead"
        )
    _check_block("hypervolume", block)
    return hypervolume.operation(points, reference_point, block=block, backend=backend)


@operation(backends=("torch", "jax"), tuning=("block",))
def hype_fitness(
    points: Float[Any, "n m"],
    samples: Float[Any, "s m"],
    alpha: Float[Any, " levels"],
    *,
    block: int | None = None,
    backend: str | None = None,
) -> Float[Any, " n"]:
    """h_i = 1/s sum_s P_si alpha[d_s], P_si = all_k points_ik <= sample_sk, d_s = sum_i P_si, in tiles of samples.

    With alpha = HypE's weights and samples uniform in a box of volume V, V h_i estimates the hypervolume that is lost
    with i when others are lost too; with alpha[d] = 1/d, V sum_i h_i estimates the hypervolume itself.

    Args:
        alpha: weight of a sample that d points cover, by d = 0 .. levels - 1; a larger d takes the last one.
        block: samples that are compared at once; memory O(block n).

    Source: Bader and Zitzler 2011, HypE; Liang et al., TensorEMO (arXiv 2503.20286), section on TensorHypE.
    """
    _check_points("hype_fitness", points)
    _check_points("hype_fitness", samples, "samples")
    if points.shape[1] != samples.shape[1]:
        raise ValueError(f"hype_fitness: points have {points.shape[1]} objectives, samples {samples.shape[1]}; wanted the same")
    if alpha.ndim != 1 or alpha.shape[0] < 1 or samples.shape[0] < 1:
        raise ValueError(f"hype_fitness: {alpha.shape[0]} weights and {samples.shape[0]} samples; wanted at least one of each")
    _check_block("hype_fitness", block)
    return hype_fitness.operation(points, samples, alpha, block=block, backend=backend)


def _check_points(name: str, points: Any, what: str = "points") -> None:
    if points.ndim != 2 or points.shape[1] < 1:
        raise ValueError(
            f"{name}: {what} have the shape {tuple(points.shape)}; wanted (points, objectives), one objective or more"
        )


def _check_block(name: str, block: int | None) -> None:
    if block is not None and block < 1:
        raise ValueError(f"{name}: block is {block}; wanted at least 1, or None for the default")
