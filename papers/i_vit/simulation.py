"""Integers simulated in floating point, with straight-through gradients: what is trained. One text for PyTorch, JAX and NumPy.

Codes are whole numbers kept in float64, which holds every intermediate result of the engine but products of more than 53 bits
(a normalised code times m); those are rounded where the engine is exact, by less than 2^-45 of a step. float32 could not hold
them at all. Every floor passes its gradient; a code's scale carries the gradient of a norm's weight and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from papers.i_vit.straight import (
    clipped,
    dyadic_parts,
    floored,
    kept,
    normal_distribution,
    power_of_two,
    rounded,
    shift_exp,
    stop,
    straight,
    times,
    unit_in_floats,
    wide_sigmoid,
    with_class_token,
)

MOMENTUM = 0.95
"""Of the running range of an activation (the paper's code)."""

SIGMOID = 1.702
"""GELU is about x sigmoid(1.702 x)."""


class Codes(NamedTuple):
    """x = scale q; the scale is a number or one for each entry of the last axis."""

    q: Any
    scale: Any


@dataclass(frozen=True)
class Options:
    """What a network is built with beyond its weights.

    Attributes:
        gelu: N and whether it is the wide form, by layer name; ``default`` where a layer is not named.
        softmax_n, softmax_bits: of Shiftmax.
        floats: layers that stay in floating point, of softmax, gelu, norm: for comparison alone.
        steps: Newton steps of the norm.
        dropped: by norm, low bits that its code of 30 bits loses so that shift / weight fits beside it; see :func:`.convert.dropped`.
    """

    gelu: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    default: tuple[int, bool] = (23, False)
    softmax_n: int = 15
    softmax_bits: int = 16
    floats: frozenset[str] = frozenset()
    steps: int = 10
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Simulation:
    """The arithmetic of training.

    Attributes:
        weights: arrays by name, PyTorch's layouts.
        ranges: (least, most) of each quantiser's input, (names, 2).
        train: whether ranges are updated, each from what it sees now.
        record: where weights and factors are put as integers, by :mod:`.convert`.
        seen: the range of this pass, by quantiser.
        input_scale, input_bits: of the codes that the last pass began with.
    """

    weights: Mapping[str, Any]
    names: list[str]
    ranges: Any
    options: Options = Options()
    train: bool = False
    record: Callable[..., None] | None = None
    seen: dict[str, Any] = field(default_factory=dict)
    input_scale: Any = None
    input_bits: int = 8

    def input(self, name: str, x: Any, bits: int) -> Codes:
        scale = self._scale(name, x, bits)
        self.input_scale, self.input_bits = scale, bits
        return Codes(clipped(rounded(x / scale), bits), scale)

    def act(self, name: str, bits: int, *parts: Codes) -> Codes:
        """The sum of the parts with the scale of the running range: a dyadic rescaling of each."""
        total = sum(part.q * part.scale for part in parts) if self.train else parts[0].q
        scale = self._scale(name, total, bits)
        rescaled = []
        for place, part in enumerate(parts):
            ratio = part.scale / scale
            m, e = dyadic_parts(stop(ratio))
            if self.record:
                self.record("act", f"{name}/{place}" if len(parts) > 1 else name, m, e, bits)
            rescaled.append(rounded(part.q * straight(m * power_of_two(-e), ratio)))
        return Codes(clipped(sum(rescaled), bits), scale)

    def linear(self, name: str, x: Codes) -> Codes:
        weight = self._weight(f"{name}.weight", True)
        scale = weight.scale * x.scale
        bias = rounded(self.weights[f"{name}.bias"] / scale)
        if self.record:
            self.record("linear", name, weight.q, bias)
        return Codes(times(x.q, weight.q.T) + bias, scale)

    def logits(self, name: str, x: Codes) -> Codes:
        weight = self._weight(f"{name}.weight", False)
        scale = weight.scale * x.scale
        bias = rounded(self.weights[f"{name}.bias"] / scale)
        if self.record:
            self.record("linear", name, weight.q, bias)
        return Codes(times(x.q, weight.q.T) + bias, scale)

    def table(self, name: str) -> Codes:
        """A constant of 16 bits: positions, the class token added to the first."""
        xp = array_namespace(self.weights[name])
        token = self.weights["class_token"]
        table = self.weights[name] + xp.concat([token, xp.zeros_like(self.weights[name][1:])], axis=0)
        scale = stop(xp.max(xp.abs(table))) * (1 / (2**15 - 1))
        scale = xp.where(scale == 0, xp.ones_like(scale), scale)
        q = clipped(rounded(table / scale), 16)
        if self.record:
            self.record("table", name, q)
        return Codes(q, scale)

    def product(self, left: Codes, right: Codes, factor: float) -> Codes:
        return Codes(times(left.q, right.q), left.scale * right.scale * factor)

    def norm(self, name: str, x: Codes) -> Codes:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        count, xp = x.q.shape[-1], array_namespace(x.q)
        dropped = self.options.dropped.get(name, 0)
        step = math.sqrt(count) * 2.0 ** (dropped - 30)
        shift = floored(bias / weight / step)
        if self.record:
            self.record("norm", name, shift, dropped)
        if "norm" in self.options.floats:
            d = x.q - xp.mean(x.q, axis=-1, keepdims=True)
            y = d / xp.sqrt(xp.mean(d * d, axis=-1, keepdims=True)) / step
        else:
            # Half a step beside the whole numbers, so that no rounding of the division reaches the floor.
            d = x.q - floored((2 * xp.sum(x.q, axis=-1, keepdims=True) + (count + 0.5)) * (1 / (2 * count)))
            v = xp.sum(d * d, axis=-1, keepdims=True)
            k = xp.full_like(v, 2.0**16)
            for _ in range(self.options.steps):
                k = kept(floored((k + floored(v / k)) / 2))
            y = floored(d * floored((2.0**31 - 1) / k) / 2.0 ** (1 + dropped))
        return Codes(y + shift, weight * step)

    def softmax(self, name: str, x: Codes) -> Codes:
        bits, n, xp = self.options.softmax_bits, self.options.softmax_n, array_namespace(x.q)
        unit = unit_in_floats(x.scale)
        if self.record:
            self.record("softmax", name, unit, n, bits)
        below = x.q - xp.max(x.q, axis=-1, keepdims=True)
        if "softmax" in self.options.floats:
            e = xp.exp(below * x.scale)
            y = rounded(xp.clip(e / xp.sum(e, axis=-1, keepdims=True) * 2.0 ** (bits - 1), 0, 2 ** (bits - 1) - 1))
        else:
            e = shift_exp(below, unit, n)
            factor = floored((2.0**31 - 1) / xp.sum(e, axis=-1, keepdims=True))
            y = floored(e * factor / 2.0 ** (32 - bits))
        return Codes(y, 2.0 ** (1 - bits))

    def gelu(self, name: str, x: Codes) -> Codes:
        n, wide = self.options.gelu.get(name, self.options.default)
        unit, xp = unit_in_floats(SIGMOID * x.scale), array_namespace(x.q)
        if self.record:
            self.record("gelu", name, unit, n, wide)
        if "gelu" in self.options.floats:
            return Codes(x.q * 2.0**7 * normal_distribution(x.q * x.scale), x.scale * 2.0**-7)
        most = xp.max(x.q, axis=-1, keepdims=True)
        most = xp.where(most > 0, most, xp.zeros_like(most))
        first, second = shift_exp(x.q - most, unit, n), shift_exp(-most, unit, n)
        if wide:
            sigmoid = straight(wide_sigmoid(first, second), first / (first + second) * 2.0**7)
        else:
            sigmoid = floored(first * floored((2.0**31 - 1) / (first + second)) / 2.0**24)
        return Codes(x.q * sigmoid, x.scale * 2.0**-7)

    def mapped(self, x: Codes, change: Callable[[Any], Any]) -> Codes:
        return Codes(change(x.q), x.scale)

    def with_class_token(self, q: Any) -> Any:
        return with_class_token(q)

    def updated(self) -> Any:
        """Ranges after this pass: the first is taken as it is, later ones with momentum."""
        xp = array_namespace(self.ranges)
        seen = xp.stack([self.seen[name] for name in self.names])
        new = xp.all(self.ranges == 0, axis=1)[:, None]
        return xp.where(new, seen, self.ranges * MOMENTUM + seen * (1 - MOMENTUM))

    def _scale(self, name: str, x: Any, bits: int) -> Any:
        place, xp = self.names.index(name), array_namespace(self.ranges)
        ends = self.ranges[place]
        if self.train:
            seen = xp.stack([xp.min(stop(x)), xp.max(stop(x))])
            self.seen[name] = seen
            ends = xp.where(xp.all(ends == 0), seen, ends * MOMENTUM + seen * (1 - MOMENTUM))
        # A multiplication: XLA would make one of a division by a constant, and PyTorch would not.
        scale = xp.max(xp.abs(ends)) * (1 / (2 ** (bits - 1) - 1))
        # A quantiser that has seen nothing but zeros has codes of zero at any scale.
        return xp.where(scale > 0, scale, xp.ones_like(scale)) if self.train else scale

    def _weight(self, name: str, by_channel: bool) -> Codes:
        """Codes of 8 bits, the scale (outer,) or one, from the weight as it is now."""
        weight = self.weights[name]
        xp = array_namespace(weight)
        most = xp.max(xp.abs(stop(weight)), axis=1) if by_channel else xp.max(xp.abs(stop(weight)))
        scale = xp.where(most > 0, most * (1 / 127), xp.ones_like(most))
        return Codes(clipped(rounded(weight / (scale[:, None] if by_channel else scale)), 8), scale)
