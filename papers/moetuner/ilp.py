"""The two integer programs.

First, for each layer alone, experts into G groups of equal load (paper, first program):

    min sum_c |T_c - sum_e P_e / G|,  T_c = sum_e P_e x_ce,  every expert in one group, no group empty.

Between them, C[l, c, d] = sum of R[l, a, b] over the experts a of group c in layer l and b of group d in layer l + 1.
Second, groups onto GPUs (paper, second program):

    min sum_l max_{g != h} t_lgh,  t_lgh = sum_cd C[l, c, d] y_lcg y_(l+1)dh / B[g, h],

y_l a bijection in every layer, and every GPU with as many experts over all layers as any other. The products y y' are variables z
of their own, z <= y, z <= y', z >= y + y' - 1. These leave z at 0 wherever all y are halves, so the bound is poor until most y are
decided, and 32 layers in one piece are hard. Two neighbouring layers alone are easy, and their optima add up to a bound:
:func:`assign_by_layers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float, Int, Int64

from common.ilp import Expression, Model, Solution, Status
from papers.moetuner.profile import Profile


class Objective(Enum):
    """What a layer's communication costs; the paper's maximum is read as ``pair``."""

    pair = "pair"  # the largest transfer from one GPU to another
    total = "total"  # all transfers together
    gpu = "gpu"  # the most that one GPU sends or receives


@dataclass(frozen=True)
class Found:
    """A result of one of the programs.

    Attributes:
        place: the group of every expert after the first program, the GPU of every group after the second.
        objective, bound: of the program, layers summed; equal if it is proven to be optimal.
        status: as the solver says it, the worst over the layers.
        seconds: of the search.
    """

    place: Int64[np.ndarray, "layer item"]
    objective: float
    bound: float
    status: Status
    seconds: float

    @property
    def gap(self) -> float:
        return 0.0 if self.status is Status.OPTIMAL else (self.objective - self.bound) / max(self.objective, 1e-12)

    def __str__(self) -> str:
        proven = "" if self.status is Status.OPTIMAL else f", not proven: bound {self.bound:g}, gap {self.gap:.2%}"
        return f"{self.objective:g}{proven}, {self.seconds:.1f} s"


def imbalance(
    load: Int[np.ndarray, "layer expert"], groups: Int[np.ndarray, "layer expert"], count: int
) -> Float[np.ndarray, " layer"]:
    """The objective of the first program for any grouping."""
    total = np.stack([np.bincount(g, weights=p, minlength=count) for g, p in zip(groups, load, strict=True)])
    return np.abs(total - load.sum(axis=1, keepdims=True) / count).sum(axis=1)


def group(
    load: Int[np.ndarray, "layer expert"],
    count: int,
    *,
    equal: bool = False,
    solver: str = "highs",
    time_limit: int | float = math.inf,
) -> Found:
    """Solve the first program for every layer.

    Args:
        load: P.
        count: G.
        equal: every group has E / G experts, so that every GPU needs the same memory in every layer.
        time_limit: seconds, for all layers together.

    Raises:
        ValueError: more groups than experts, equal groups that do not come out even, a layer without tokens, or no grouping
            found in time.
    """
    check_groups(load, count, equal)
    solutions: list[Solution] = []
    for each in load:
        left = max(time_limit - sum(one.seconds for one in solutions), 1e-3)
        solutions.append(grouping_model(each, count, equal, whole=solver == "cp_sat").solve(solver=solver, time_limit=left))
        if not solutions[-1].values:
            raise ValueError(
                f"groups of layer {len(solutions) - 1}: {solutions[-1]}, bound {solutions[-1].bound:g}; give it more time"
            )
    groups = np.stack([each["x"].argmax(axis=0) for each in solutions])
    proven = all(each.status is Status.OPTIMAL for each in solutions)
    return Found(
        groups,
        float(imbalance(load, groups, count).sum()),
        sum(each.bound for each in solutions),
        Status.OPTIMAL if proven else Status.FEASIBLE,
        sum(each.seconds for each in solutions),
    )


def grouping_model(load: Int[np.ndarray, " expert"], count: int, equal: bool = False, whole: bool = False) -> Model:
    """The first program of one layer. Groups are alike, so the heaviest expert may be taken to be in group 0, the next in 0 or 1, ..."""
    model, experts = Model(), len(load)
    rank = np.argsort(np.argsort(-load, kind="stable"))
    x = model.integers("x", (count, experts), high=np.arange(count)[:, None] <= rank)
    # G T_c - sum P is a whole number, which CP-SAT needs.
    off = (x * (count * load)).sum(axis=1) - int(load.sum())
    deviation = (model.integers if whole else model.reals)("deviation", (count,), high=count * int(load.sum()))
    model.require("an expert is in one group", x.sum(axis=0) == 1)
    model.require("a group has experts", x.sum(axis=1) == experts // count if equal else x.sum(axis=1) >= 1)
    model.require("deviation", deviation >= off)
    model.require("deviation", deviation >= -off)
    model.minimise(deviation.sum() * (1 / count))
    return model


def exchanged(profiled: Profile, groups: Int[np.ndarray, "layer expert"], count: int) -> Int64[np.ndarray, "gap group group"]:
    """C."""
    member = np.eye(count, dtype=np.int64)[groups]
    return np.einsum("lac,lab,lbd->lcd", member[:-1], profiled.moved, member[1:])


def sizes(groups: Int[np.ndarray, "layer expert"], count: int) -> Int64[np.ndarray, "layer group"]:
    """Experts of every group."""
    return np.stack([np.bincount(each, minlength=count) for each in groups])


def assign(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    sizes: Int[np.ndarray, "layer group"] | None = None,
    *,
    objective: Objective = Objective.pair,
    solver: str = "highs",
    gap: float = 0.0,
    time_limit: int | float = math.inf,
) -> Found:
    """Solve the second program.

    Args:
        exchange: C.
        bandwidth: B, in any unit; the objective is in tokens over the largest of them.
        sizes: experts of each group; None: do not ask for equal memory.
        solver: "cp_sat" has whole numbers only and so rounds each gap's bottleneck up to a whole one; that matters where bandwidths
            are no multiples of each other.
        gap, time_limit: where the search may end; what has been found then is "not proven".

    Raises:
        ValueError: a bandwidth that is not above 0, shapes that do not fit, no assignment with equal memory, or none found in time
            (with the best bound).
    """
    model = assignment_model(exchange, bandwidth, sizes, objective, whole=solver == "cp_sat")
    solution = model.solve(solver=solver, time_limit=time_limit, gap=gap)
    if not solution.values:
        raise ValueError(
            f"assignment: {solution}, bound {solution.bound:g}; give it more time, or take assign_by_layers, dp.assign or the search"
        )
    place = solution["y"].argmax(axis=2)
    value = float(cost(exchange, bandwidth, place, objective).sum())
    return Found(place, value, min(solution.bound, value), solution.status, solution.seconds)


def assignment_model(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    sizes: Int[np.ndarray, "layer group"] | None = None,
    objective: Objective = Objective.pair,
    whole: bool = False,
    first: Int[np.ndarray, " group"] | None = None,
) -> Model:
    """The second program; ``whole``: with variables of whole numbers only; ``first``: GPUs of the first layer's groups, if given."""
    slow = slowness(bandwidth)
    gaps, count, _ = exchange.shape
    if exchange.shape[1:] != slow.shape:
        raise ValueError(f"C has shape {exchange.shape} and B {slow.shape}; wanted as many groups as GPUs")
    model = Model()
    number = model.integers if whole else model.reals
    y = model.binaries("y", (gaps + 1, count, count))
    here, there = np.nonzero(~np.eye(count, dtype=bool))
    z = number("z", (gaps, count, count, len(here)), high=1)
    model.require("a group is on one GPU", y.sum(axis=2) == 1)
    model.require("a GPU has one group of a layer", y.sum(axis=1) == 1)
    equal = sizes is None or bool((sizes == sizes[0, 0]).all())
    if first is None and equal and np.unique(slow[here, there]).size == 1:
        first = np.arange(count)  # all GPUs are alike: G! equal solutions otherwise
    if first is not None:
        model.require("the first layer is given", y[0] == np.eye(count)[first])
    if sizes is not None and not equal:
        _add_memory(model, y, sizes)
    one, other = y[:-1][:, :, here][:, :, None], y[1:][:, :, there][:, None]
    model.require("products", z <= one)
    model.require("products", z <= other)
    model.require("products", z >= one + other - 1)
    # t of every gap and pair of GPUs.
    moved = (z * (exchange[..., None] * slow[here, there])).sum(axis=(1, 2))
    if objective is Objective.total:
        model.minimise(moved.sum())
        return model
    most = number("most", (gaps,), high=float(exchange.sum() * slow.max()))
    if objective is Objective.pair:
        model.require("the largest transfer", most[:, None] >= moved)
    else:
        for ends in (here, there):
            for gpu in range(count):
                model.require("the busiest GPU", most >= moved[:, ends == gpu].sum(axis=1))
    model.minimise(most.sum())
    return model


def assign_by_layers(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    *,
    objective: Objective = Objective.pair,
    solver: str = "highs",
) -> Found:
    """The second program in pieces: every two layers with the first of them as it came out before; groups of equal size.

    The bound is the sum of the optima of every two layers alone. Where all GPUs are alike, so that only the place of a layer
    relative to the last one counts, a piece is as good with its first layer given as without, and the result is optimal.
    """
    place, bounds, seconds = [np.arange(exchange.shape[1])], [], 0.0
    alike = np.unique(slowness(bandwidth)).size == 2
    for gap in range(len(exchange)):
        part = exchange[gap : gap + 1]
        for first in [place[-1]] if alike else [None, place[-1]]:
            model = assignment_model(part, bandwidth, None, objective, whole=solver == "cp_sat", first=first)
            solution = model.solve(solver=solver)
            seconds += solution.seconds
            if first is None or alike:
                bounds.append(solution.bound)
        place.append(solution["y"][1].argmax(axis=1))
    whole = np.stack(place)
    value, bound = float(cost(exchange, bandwidth, whole, objective).sum()), float(sum(bounds))
    proven = value - bound <= 1e-6 * value
    return Found(whole, value, value if proven else bound, Status.OPTIMAL if proven else Status.FEASIBLE, seconds)


def cost(
    exchange: Int[np.ndarray, "gap group group"],
    bandwidth: Float[np.ndarray, "gpu gpu"],
    place: Int[np.ndarray, "layer group"],
    objective: Objective = Objective.pair,
) -> Float[np.ndarray, " gap"]:
    """The second program's objective between every two layers, of any assignment."""
    moved = np.zeros(exchange.shape)
    gap = np.arange(len(exchange))[:, None, None]
    moved[gap, place[:-1, :, None], place[1:, None, :]] = exchange
    return reduce(moved * slowness(bandwidth), objective)


def reduce(moved: Float[np.ndarray, "*all gpu gpu"], objective: Objective) -> Float[np.ndarray, "*all"]:
    """One number for the transfers between all pairs of GPUs."""
    if objective is Objective.pair:
        return moved.max(axis=(-2, -1))
    if objective is Objective.total:
        return moved.sum(axis=(-2, -1))
    return np.maximum(moved.sum(axis=-1).max(axis=-1), moved.sum(axis=-2).max(axis=-1))


def slowness(bandwidth: Float[np.ndarray, "gpu gpu"]) -> Float[np.ndarray, "gpu gpu"]:
    """Largest bandwidth over each; 0 on the diagonal, where nothing is sent."""
    off = ~np.eye(len(bandwidth), dtype=bool)
    if bandwidth.shape != off.shape or len(bandwidth) < 2:
        raise ValueError(f"B has shape {bandwidth.shape}; wanted a square of at least 2 GPUs")
    if not (bandwidth[off] > 0).all():
        here, there = (int(each) for each in np.argwhere(off & ~(bandwidth > 0))[0])
        raise ValueError(
            f"the bandwidth from GPU {here} to {there} is {bandwidth[here, there]:g}; wanted above 0, or every layer would wait for ever"
        )
    best = bandwidth[off].max()
    return np.where(off, best / np.where(off, bandwidth, 1.0), 0.0)


def check_groups(load: Int[np.ndarray, "layer expert"], count: int, equal: bool) -> None:
    experts = load.shape[1]
    if not 1 < count <= experts:
        raise ValueError(f"{count} GPUs for {experts} experts of a layer; wanted 2 to {experts}, as every GPU needs an expert")
    if equal and experts % count:
        raise ValueError(f"{experts} experts in {count} groups of equal size do not come out even; give equal=False")
    if (empty := load.sum(axis=1) == 0).any():
        raise ValueError(f"layer {int(empty.argmax())} has no tokens; profile a text, or leave the layer out")


def _add_memory(model: Model, y: Expression, sizes: Int[np.ndarray, "layer group"]) -> None:
    """Every GPU holds as many experts as any other, all layers together."""
    if sizes.sum() % sizes.shape[1]:
        raise ValueError(f"{sizes.sum()} experts on {sizes.shape[1]} GPUs do not come out even; give sizes=None")
    model.require("equal memory", (y * sizes[:, :, None]).sum(axis=(0, 1)) == int(sizes.sum()) // sizes.shape[1])
