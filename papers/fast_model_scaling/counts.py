"""The counted claims: published networks, scaled ones, and how fast activations grow with multiply-adds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from papers.fast_model_scaling import published
from papers.fast_model_scaling.complexity import Complexity, complexity
from papers.fast_model_scaling.runtime import table
from papers.fast_model_scaling.scaling import RULES, UNGROUPED, scale
from papers.fast_model_scaling.specs import Spec, named

BASES = ("EfficientNet-B0", "RegNetY-400MF", "RegNetY-4.0GF")
S = (2, 4, 8, 16, 32)
FOUR = 4


def base_networks() -> dict[str, Any]:
    """Counts of the published networks, claim by claim."""
    found = {name: complexity(named(name)) for name in [*published.EFFICIENTNETS, *BASES, "ResNet-50"]}
    family = {name.removeprefix("EfficientNet-"): each for name, each in found.items() if name.startswith("EfficientNet")}
    b_0 = family.pop("B0")
    others = {f"{name}, {what}": getattr(each, what) for what in ("flops", "activations") for name, each in family.items()}
    y = {f"{name}, {what}": n for name in ("400MF", "4.0GF") for what, n in found[f"RegNetY-{name}"]._asdict().items()}
    return {"base_b0": b_0._asdict(), "base_b1_to_b5": others, "base_y": y, "base_r50": found["ResNet-50"]._asdict()}


def table_mismatches() -> dict[str, int]:
    """How many of the published table's networks are counted differently, to its three decimals."""
    wrong = dict.fromkeys(Complexity._fields, 0)
    for name, (flops, parameters, activations, _) in table().items():
        counted = complexity(named(name))
        printed = Complexity(flops, parameters, activations)
        for what, unit in (("flops", 1e9), ("parameters", 1e6), ("activations", 1e6)):
            # A half may have been rounded either way.
            wrong[what] += abs(getattr(counted, what) / unit - getattr(printed, what)) > 0.5e-3 + 1e-9
    return wrong


def y4_fast() -> dict[str, float]:
    spec = scale(named("RegNetY-4.0GF"), RULES["fast"], FOUR)
    stages = {f"depth {i}": n for i, n in enumerate(spec.depths, 1)} | {f"width {i}": n for i, n in enumerate(spec.widths, 1)}
    (group,) = set(spec.group_widths)  # type: ignore[union-attr]
    return {"resolution": spec.resolution, **stages, "group width": group, **_in_millions(complexity(spec))}


def y4_dwr() -> dict[str, float]:
    spec = scale(named("RegNetY-4.0GF"), UNGROUPED["dwr"], FOUR)
    return {"resolution": spec.resolution, **_in_millions(complexity(spec))}


def by_rule(name: str, rules: tuple[str, ...]) -> dict[str, float]:
    """Multiply-adds and activations of a network scaled by 4."""
    found: dict[str, float] = {}
    for rule in rules:
        sizes = _in_millions(complexity(scale(named(name), UNGROUPED[rule], FOUR)))
        found |= {f"{rule}, {what}": sizes[what] for what in ("GF", "M activations")}
    return found


def exponent(base: Spec, scaled: Spec) -> float:
    """log of the ratio of activations over log of that of multiply-adds."""
    before, after = complexity(base), complexity(scaled)
    return math.log(after.activations / before.activations) / math.log(after.flops / before.flops)


def exponents(rule: str) -> dict[tuple[str, int], float]:
    """By base and s."""
    return {(name, s): exponent(named(name), scale(named(name), UNGROUPED[rule], s)) for name in BASES for s in S}


def growth() -> dict[str, Any]:
    """The claims on exponents."""
    fast = exponents("fast")
    usual: dict[str, float] = {}
    for rule in ("d", "r", "dwr"):
        found = exponents(rule).values()
        usual |= {f"{rule}, lowest": min(found), f"{rule}, highest": max(found)}
    return {
        "expo_fast": {
            "lowest": min(fast.values()), "highest": max(fast.values()), "RegNetY-4.0GF, s = 4": fast["RegNetY-4.0GF", FOUR],
        },
        "expo_usual": usual,
        "expo_family": exponent(named("EfficientNet-B0"), named("EfficientNet-B5")),
    }  # fmt: skip


def group_scale() -> dict[str, float]:
    """What width scaling by 4 multiplies the multiply-adds with, with the groups as they were and with the groups scaled."""
    base = named("RegNetY-4.0GF")
    ratios = {rule: complexity(scale(base, rule, FOUR)).flops / complexity(base).flops for rule in ("w", "wg")}
    return {"groups as they were": ratios["w"], "groups scaled": ratios["wg"]}


def of_the_ledger(everything: bool) -> dict[str, Spec]:
    """The networks that are built and counted; without ``everything`` one with groups and gates."""
    some = {"RegNetY-400MF": named("RegNetY-400MF")}
    if not everything:
        return some
    family = {name: named(name) for name in [*published.EFFICIENTNETS, "RegNetY-4.0GF", "ResNet-50"]}
    scaled = {
        f"{name} x4 {rule}": scale(named(name), UNGROUPED[rule], FOUR)
        for name in ("EfficientNet-B0", "RegNetY-4.0GF")
        for rule in UNGROUPED
    }
    return some | family | scaled | {"RegNetY-4.0GF x4 wg": scale(named("RegNetY-4.0GF"), "wg", FOUR)}


def curves(name: str) -> dict[str, tuple[list[float], list[float]]]:
    """(10^9 multiply-adds, 10^6 activations) by rule, for s from 1 to 32."""
    base, found = named(name), {}
    for rule in UNGROUPED:
        sizes = [complexity(scale(base, UNGROUPED[rule], s)) for s in (1, *S)]
        found[rule] = ([each.flops / 1e9 for each in sizes], [each.activations / 1e6 for each in sizes])
    return found


def _in_millions(found: Complexity) -> dict[str, float]:
    return {"GF": found.flops / 1e9, "M parameters": found.parameters / 1e6, "M activations": found.activations / 1e6}


def log_table() -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """log of our own counts, by kind, and of the published times of the networks of the published table."""
    names = list(table())
    counted = [complexity(named(name)) for name in names]
    logs = {what: np.log([getattr(each, what) for each in counted]) for what in Complexity._fields}
    return logs, np.log([table()[name][3] for name in names]), names
