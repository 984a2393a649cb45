"""Where experts live: a GPU for every expert of every layer, by the paper's method and by what it is compared with."""

from __future__ import annotations

from enum import Enum

import numpy as np
from jaxtyping import Float, Int, Int64

from papers.moetuner import dp, ilp
from papers.moetuner.ilp import Objective
from papers.moetuner.profile import Profile

Placement = Int64[np.ndarray, "layer expert"]


class Method(Enum):
    """How experts are placed."""

    tuned = "tuned"  # both programs
    balanced = "balanced"  # the first program alone: groups on any GPUs
    lpt = "lpt"  # longest processing time first: each expert, heaviest first, to the GPU with the least load that has room
    random = "random"  # as many experts on each GPU, dealt anew in every layer
    contiguous = "contiguous"  # the first E / G experts on the first GPU, and so on: the usual default


def place(
    profiled: Profile,
    bandwidth: Float[np.ndarray, "gpu gpu"],
    method: Method,
    *,
    groups: Int[np.ndarray, "layer expert"] | None = None,
    objective: Objective = Objective.pair,
    seed: int = 0,
) -> Placement:
    """A placement by one of the methods, from a profile.

    The second program of ``tuned`` is solved by :mod:`papers.moetuner.dp` where it can be, for up to 6 GPUs: the optimum of the same
    program, in no time. Else by :func:`papers.moetuner.ilp.assign_by_layers`. The first program does not know of memory; if its groups
    cannot be dealt so that every GPU has as many experts as any other, groups of equal size are taken.

    Args:
        groups: what the first program found, if it has been solved before.

    Raises:
        ValueError: GPUs and experts that do not fit together.
    """
    count, (layers, experts) = len(bandwidth), profiled.load.shape
    if method in (Method.tuned, Method.balanced):
        groups = ilp.group(profiled.load, count, equal=count > dp.LARGEST).place if groups is None else groups
        gpus = _random(layers, np.arange(count), seed) if method is Method.balanced else None
        if gpus is None:
            groups, gpus = _assigned(profiled, bandwidth, groups, objective)
        return np.take_along_axis(gpus, groups, axis=1)
    ilp.check_groups(profiled.load, count, equal=True)
    even = np.arange(experts) // (experts // count)
    if method is Method.contiguous:
        return np.tile(even, (layers, 1))
    if method is Method.random:
        return _random(layers, even, seed)
    return np.stack([lpt(each, count) for each in profiled.load])


def _assigned(
    profiled: Profile, bandwidth: Float[np.ndarray, "gpu gpu"], groups: Int[np.ndarray, "layer expert"], objective: Objective
) -> tuple[Placement, Int64[np.ndarray, "layer group"]]:
    """Groups, and by the second program their GPUs."""
    count = len(bandwidth)
    exchange = ilp.exchanged(profiled, groups, count)
    if count > dp.LARGEST:
        return groups, ilp.assign_by_layers(exchange, bandwidth, objective=objective).place
    try:
        return groups, dp.assign(exchange, bandwidth, ilp.sizes(groups, count), objective=objective).place
    except dp.UnevenMemory:
        return _assigned(profiled, bandwidth, ilp.group(profiled.load, count, equal=True).place, objective)


def _random(layers: int, dealt: Int[np.ndarray, " item"], seed: int) -> Int64[np.ndarray, "layer item"]:
    """The same numbers in every layer, in random order."""
    return np.random.default_rng(seed).permuted(np.tile(dealt, (layers, 1)), axis=1)


def lpt(load: Int[np.ndarray, " expert"], count: int) -> Int64[np.ndarray, " expert"]:
    """Heaviest expert first, each to the group with the least load so far among those with fewer than E / G experts."""
    groups, total, size = np.zeros(len(load), np.int64), np.zeros(count), np.zeros(count, np.int64)
    for expert in np.argsort(-load, kind="stable"):
        to = np.where(size < len(load) // count, total, np.inf).argmin()
        groups[expert] = to
        total[to] += load[expert]
        size[to] += 1
    return groups
