"""The cost of a scaled network in closed form, stage by stage instead of layer by layer: one text for arrays of any framework.

:mod:`papers.fast_model_scaling.sweep_torch` and ``sweep_jax`` map it over grids of alpha and s and differentiate it.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from papers.fast_model_scaling.complexity import Complexity
from papers.fast_model_scaling.specs import AnyNet, Spec


def scaled(base: Spec, alpha: Any, s: Any, *, rounded: bool = True, stem: bool = True) -> Complexity:
    """The cost of a base network under the family d' = s^((1 - alpha) / 2) d, w' = s^(alpha / 2) w, r' = s^((1 - alpha) / 4) r.

    Group widths grow as widths do, and alpha = 0.8 is the fast rule.

    Args:
        alpha, s: floating scalars or arrays of one framework, which broadcast.
        rounded: as :func:`papers.fast_model_scaling.scaling.scale` rounds, exactly so in float64 and without a gradient; else
            depths, widths and pixels are real numbers, and the result is differentiable.
        stem: whether stem, head and classifier count; without them the first stage takes as many channels as it puts out.

    Returns:
        multiply-adds, parameters and activations as arrays.

    Raises:
        ValueError: an AnyNet with bottlenecks above 1.

    Source: the paper, sections 3 and 4.
    """
    xp = array_namespace(alpha, s)
    f = _Numbers(xp, rounded)
    rest = (1 - alpha) / 2
    depth, width, side = s**rest, s ** (alpha / 2), s ** (rest / 2)
    pixels = f.multiple(base.resolution * side, 4)
    depths = [f.at_least(f.whole(d * depth), 1) if rounded else d * depth for d in base.depths]
    widths = [f.eighths(w * width) for w in base.widths]
    if isinstance(base, AnyNet):
        return _anynet(base, f, depths, widths, width, pixels, stem)
    return _efficientnet(base, f, depths, widths, width, pixels, stem)


class _Numbers:
    """Rounding that leaves real numbers alone where it is switched off."""

    def __init__(self, xp: Any, on: bool) -> None:
        self.xp, self.on = xp, on

    def whole(self, x: Any) -> Any:
        return self.xp.round(x) if self.on else x

    def down(self, x: Any) -> Any:
        return self.xp.floor(x) if self.on else x

    def halved(self, x: Any, stride: int) -> Any:
        """Pixels behind a stride."""
        return self.xp.ceil(x / stride) if self.on else x / stride

    def multiple(self, x: Any, of: int) -> Any:
        return self.xp.round(x / of) * of if self.on else x

    def at_least(self, x: Any, least: float | int) -> Any:
        return self.xp.where(x < least, least + 0 * x, x)

    def eighths(self, width: Any) -> Any:
        return self.at_least(self.xp.round(width / 8), 1) * 8 if self.on else width

    def group(self, width: Any) -> Any:
        """A scaled group width."""
        if not self.on:
            return width
        xp, whole = self.xp, self.at_least(self.xp.round(width), 1)
        return xp.where(whole <= 2, whole, xp.where(whole <= 5, 4 + 0 * whole, xp.round(whole / 8) * 8))


def _anynet(base: AnyNet, f: _Numbers, depths: Any, widths: Any, width: Any, pixels: Any, stem: bool) -> Complexity:
    if max(base.bottlenecks) > 1:
        raise ValueError(f"bottlenecks are {base.bottlenecks}; the closed form takes those up to 1, count each network instead")
    xp, total, inputs = f.xp, _Sum(), base.stem + 0 * width if stem else widths[0]
    pixels = f.halved(pixels, 2)
    if stem:
        total.convolution(3, base.stem, base.stem_kernel**2, 1, pixels)
    if base.pool:
        pixels = f.halved(pixels, 2)
        total.activations = total.activations + (base.stem * pixels**2 if stem else 0)
    stages = zip(depths, widths, base.strides, base.bottlenecks, base.group_widths, strict=True)
    for depth, out, stride, ratio, group in stages:
        inner = f.down(out * ratio)
        if group:
            each = f.group(group * width)
            each = xp.where(each > inner, inner, each)
            if f.on:
                inner = xp.round(inner / each) * each
                inner = xp.where(inner < each, each, inner)
        else:
            each = inner
        out = inner / ratio
        before, pixels = pixels, f.halved(pixels, stride)
        for count, entering, side in ((1, inputs, before), (depth - 1, out, pixels)):
            gate = f.whole(entering * base.squeeze) if base.squeeze else 0
            total.convolution(entering, inner, 1, 1, side, count)
            total.convolution(inner, inner, 9, inner / each, pixels, count)
            total.convolution(inner, out, 1, 1, pixels, count)
            total.gate(inner, gate, count)
        # The first block's shortcut is a convolution unless nothing changes.
        same = xp.where(out == inputs, 0 * out, 1 + 0 * out) if stride == 1 else 1
        total.convolution(inputs, out, 1, 1, pixels, same)
        inputs = out
    if stem:
        total.classifier(inputs, base.classes)
    return total.found()


def _efficientnet(base: Any, f: _Numbers, depths: Any, widths: Any, width: Any, pixels: Any, stem: bool) -> Complexity:
    total, inputs = _Sum(), f.eighths(base.stem * width)
    pixels = f.halved(pixels, 2)
    if stem:
        total.convolution(3, inputs, 9, 1, pixels)
    for depth, out, expand, kernel, stride in zip(depths, widths, base.expands, base.kernels, base.strides, strict=True):
        before, pixels = pixels, f.halved(pixels, stride)
        for count, entering, side in ((1, inputs, before), (depth - 1, out, pixels)):
            hidden = entering * expand
            if expand != 1:
                total.convolution(entering, hidden, 1, 1, side, count)
            total.convolution(hidden, hidden, kernel**2, hidden, pixels, count)
            total.convolution(hidden, out, 1, 1, pixels, count)
            total.gate(hidden, f.down(entering * base.squeeze) if base.squeeze else 0, count)
        inputs = out
    if stem:
        head = f.eighths(base.head * width)
        total.convolution(inputs, head, 1, 1, pixels)
        total.classifier(head, base.classes)
    return total.found()


class _Sum:
    """Adds up what ``count`` equal layers cost."""

    def __init__(self) -> None:
        self.flops: Any = 0.0
        self.parameters: Any = 0.0
        self.activations: Any = 0.0

    def convolution(self, inputs: Any, outputs: Any, taps: Any, groups: Any, side: Any, count: Any = 1) -> None:
        """With its norm; ``side``: pixels of its output's side."""
        weights = taps * inputs * outputs / groups
        self.flops = self.flops + count * weights * side**2
        self.parameters = self.parameters + count * (weights + 2 * outputs)
        self.activations = self.activations + count * outputs * side**2

    def gate(self, hidden: Any, gate: Any, count: Any) -> None:
        if isinstance(gate, int) and not gate:
            return
        both = hidden + gate
        self.flops = self.flops + count * (2 * hidden * gate + both)
        self.parameters = self.parameters + count * (2 * hidden * gate + both)
        self.activations = self.activations + count * both

    def classifier(self, inputs: Any, classes: int) -> None:
        self.flops = self.flops + (inputs + 1) * classes
        self.parameters = self.parameters + (inputs + 1) * classes
        self.activations = self.activations + classes

    def found(self) -> Complexity:
        return Complexity(self.flops, self.parameters, self.activations)


def theory(alpha: Any) -> tuple[Any, Any, Any]:
    """Exponents of s in multiply-adds, parameters and activations: 1, (1 + alpha) / 2 and 1 - alpha / 2 (the paper, table 2)."""
    return 1 + 0 * alpha, (1 + alpha) / 2, 1 - alpha / 2
