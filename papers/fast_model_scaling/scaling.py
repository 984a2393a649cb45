"""Scaling by depth, width, resolution and mixtures of them, with the authors' rounding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from papers.fast_model_scaling.specs import AnyNet, Spec

RULES = {"d": "d", "w": "wg", "r": "r", "dwr": "dwgr", "fast": "d1_w8_g8_r1"}
"""The rules that are compared, by name; where the width grows, so does that of the groups."""

UNGROUPED = RULES | {"w": "w", "dwr": "dwr"}
"""The same with groups as they are, except under the fast rule: what the published counts have."""


class Factors(NamedTuple):
    """What depth, width, group width and resolution are multiplied with."""

    depth: float
    width: float
    group: float
    resolution: float


def scaling_factors(rule: str, s: float | int) -> Factors:
    """d = s^(q_d / Q), w = s^(q_w / 2Q), r = s^(q_r / 2Q), g = s^(q_g / 2Q) with Q = q_d + q_w + q_r, so that d w^2 r^2 = s.

    Args:
        rule: letters of d, w, r and g, each of weight 1 ("dw"), or weights ("d1_w8_g8_r1", the fast rule).
        s: target factor on the multiply-adds, above 0.

    Raises:
        ValueError: an unknown letter, one that comes twice, a weight that is negative or no number; d, w and r all 0 while s is
            not 1; an s that is not above 0.

    Source: the paper, section 4 and its appendix on groups; the notation is that of the authors' code.
    """
    if not (s > 0 and math.isfinite(s)):
        raise ValueError(f"s is {s}; wanted a factor above 0")
    weights = _weights(rule)
    total = weights["d"] + weights["w"] + weights["r"]
    if not total:
        if s == 1:
            return Factors(1.0, 1.0, 1.0, 1.0)
        raise ValueError(f"rule {rule!r} scales neither depth nor width nor resolution; give one of d, w, r a weight, or s = 1")
    d, w, g, r = (weights[letter] / total for letter in "dwgr")
    return Factors(s**d, s ** (w / 2), s ** (g / 2), s ** (r / 2))


def family(alpha: float | int) -> str:
    """The rule of the family e_d = e_r = (1 - alpha) / 2, e_w = e_g = alpha: 1/3 is uniform, 0.8 fast, 1 width alone.

    Raises:
        ValueError: an alpha outside [0, 1].

    Source: the paper, section 4.3.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; wanted a share of width from 0 to 1")
    alpha = float(alpha)  # NumPy writes its numbers otherwise
    rest = (1 - alpha) / 2
    return f"d{rest!r}_w{alpha!r}_g{alpha!r}_r{rest!r}"


def scale(spec: Spec, rule: str, s: float | int) -> Spec:
    """The network scaled by a rule and rounded as the authors do.

    Depths to whole numbers from 1, widths to multiples of 8, group widths to 1, 2, 4 or multiples of 8, the resolution to
    multiples of 4; a tie goes to the even number. Then groups and widths are made to fit (:func:`compatible`). The stem of an
    AnyNet is not scaled, stem and head of an EfficientNet are.

    Raises:
        ValueError: as :func:`scaling_factors`; a resolution under 32.

    Source: the authors' code, pycls/models/scaler.py.
    """
    factor = scaling_factors(rule, s)
    depths = tuple(max(1, round(depth * factor.depth)) for depth in spec.depths)
    widths = tuple(_eighths(width * factor.width) for width in spec.widths)
    resolution = round(spec.resolution * factor.resolution / 4) * 4
    if not isinstance(spec, AnyNet):
        stem, head = _eighths(spec.stem * factor.width), _eighths(spec.head * factor.width)
        return replace(spec, depths=depths, widths=widths, stem=stem, head=head, resolution=resolution)
    groups = tuple(group and _group(group * factor.group) for group in spec.group_widths)
    widths, groups = compatible(widths, spec.bottlenecks, groups)
    return replace(spec, depths=depths, widths=widths, group_widths=groups, resolution=resolution)


def compatible(
    widths: Sequence[int], bottlenecks: Sequence[float], groups: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and group widths that fit: v = width bottleneck goes to the nearest multiple of its group width, which is at most v.

    Where the bottleneck is above 1, v stays a multiple of it too. A group width of 0, not grouped, stays.

    Source: the authors' code, ``adjust_block_compatibility``.
    """
    fitted = []
    for width, ratio, group in zip(widths, bottlenecks, groups, strict=True):
        inner = int(max(1, width * ratio))
        group = min(group, inner)
        step = math.lcm(max(group, 1), int(ratio)) if ratio > 1 else max(group, 1)
        inner = max(step, round(inner / step) * step)
        fitted.append((int(inner / ratio), group))
    return tuple(width for width, _ in fitted), tuple(group for _, group in fitted)


def _weights(rule: str) -> dict[str, float]:
    parts = list(rule) if rule and all(letter in "dwgr" for letter in rule) else rule.split("_")
    found = dict.fromkeys("dwgr", 0.0)
    for part in parts:
        match = re.fullmatch(r"([dwgr])((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)?", part)
        if not match or (match[2] is None and len(part) != 1):
            raise ValueError(
                f"rule {rule!r}: {part!r} is not understood; wanted letters of d, w, g, r, as in 'dw' or 'd1_w8_g8_r1'"
            )
        found[match[1]] = float(match[2] or 1)
    letters = [part[0] for part in parts]
    if len(set(letters)) != len(letters):
        raise ValueError(f"rule {rule!r} names a letter twice; wanted each of d, w, g, r once at most")
    return found


def _eighths(width: float) -> int:
    return max(1, round(width / 8)) * 8


def _group(width: float) -> int:
    whole = max(1, round(width))
    return whole if whole <= 2 else 4 if whole <= 5 else round(whole / 8) * 8
