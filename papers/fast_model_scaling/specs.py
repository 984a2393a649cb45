"""Networks as the few numbers that scaling changes: depths, widths, groups, resolution; imports no framework."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.nas import Convolution, InvertedResidual, divisible
from papers.fast_model_scaling import published
from papers.fast_model_scaling.block import Bottleneck, Chain, MaxPool

LEAST_RESOLUTION = 32
"""Five halvings leave a pixel."""


@dataclass(frozen=True, kw_only=True)
class EfficientNet:
    """Stem 3 x 3, stages of inverted residuals with gates, 1 x 1 head, classifier; SiLU throughout.

    Attributes:
        depths, widths, expands, kernels, strides: of each stage; its first block has the stride.
        stem, head: channels of the first and of the last convolution.
        resolution: pixels of an image's side.
        squeeze: channels of a gate over the *inputs* of its block.

    Raises:
        ValueError: stages that do not fit together, or a resolution under 32.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    expands: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    stem: int
    head: int
    resolution: int
    squeeze: float = 0.25
    classes: int = 1000

    def __post_init__(self) -> None:
        _check(self, "depths", "widths", "expands", "kernels", "strides")

    def network(self) -> Chain:
        """Its layers, one after the other."""
        layers: list[Any] = [Convolution(inputs=3, outputs=self.stem, kernel=3, stride=2, activation="silu")]
        inputs = self.stem
        stages = zip(self.depths, self.widths, self.expands, self.kernels, self.strides, strict=True)
        for depth, width, expand, kernel, stride in stages:
            for place in range(depth):
                block = InvertedResidual(
                    inputs=inputs, outputs=width, kernel=kernel, stride=1 if place else stride, expand=expand,
                    squeeze=int(inputs * self.squeeze), activation="silu",
                )  # fmt: skip
                layers.append(block)
                inputs = width
        layers.append(Convolution(inputs=inputs, outputs=self.head, activation="silu"))
        return Chain(layers=tuple(layers), classes=self.classes, epsilon=1e-3)


@dataclass(frozen=True, kw_only=True)
class AnyNet:
    """Stem, stages of bottlenecks, classifier: RegNetX, RegNetY, ResNet, ResNeXt.

    Attributes:
        depths, widths, strides: of each stage.
        bottlenecks: channels of the 3 x 3 convolution over the width; above 1 a whole number.
        group_widths: channels of each of its groups; 0: it is not grouped, however wide.
        stem, stem_kernel: channels and size of the first convolution; ``pool``: max-pooling behind it.
        squeeze: channels of a gate over the inputs of its block; 0: no gates.

    Raises:
        ValueError: stages that do not fit together, groups that do not divide the channels, a bottleneck above 1 that is no
            whole number, or a resolution under 32.

    Source: Radosavovic et al. 2020 (arXiv 2003.13678), section 3.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    group_widths: tuple[int, ...]
    bottlenecks: tuple[float, ...]
    stem: int
    resolution: int
    stem_kernel: int = 3
    pool: bool = False
    squeeze: float = 0.0
    classes: int = 1000

    def __post_init__(self) -> None:
        _check(self, "depths", "widths", "strides", "bottlenecks")
        if len(self.group_widths) != len(self.depths) or min(self.group_widths) < 0:
            raise ValueError(f"group_widths is {self.group_widths}; wanted one of each stage, 0 or more")
        for width, ratio, group in zip(self.widths, self.bottlenecks, self.group_widths, strict=True):
            if ratio > 1 and ratio != int(ratio):
                raise ValueError(f"a bottleneck of {ratio} is above 1 and no whole number; wanted 2, 3, ..., or at most 1")
            if width * ratio != int(width * ratio) or (group and int(width * ratio) % group):
                raise ValueError(
                    f"width {width}, bottleneck {ratio} and group width {group} do not fit: {width * ratio:g} channels are no "
                    f"whole number of groups; use compatible() of papers.fast_model_scaling.scaling"
                )

    def network(self) -> Chain:
        """Its layers, one after the other."""
        layers: list[Any] = [Convolution(inputs=3, outputs=self.stem, kernel=self.stem_kernel, stride=2, activation="relu")]
        layers += [MaxPool(inputs=self.stem)] if self.pool else []
        inputs = self.stem
        stages = zip(self.depths, self.widths, self.strides, self.bottlenecks, self.group_widths, strict=True)
        for depth, width, stride, ratio, group in stages:
            hidden = int(width * ratio)
            for place in range(depth):
                block = Bottleneck(
                    inputs=inputs, outputs=width, hidden=hidden, groups=hidden // group if group else 1,
                    stride=1 if place else stride, squeeze=round(inputs * self.squeeze),
                )  # fmt: skip
                layers.append(block)
                inputs = width
        return Chain(layers=tuple(layers), classes=self.classes)


Spec = EfficientNet | AnyNet


def _check(spec: Any, *stages: str) -> None:
    for name in stages:
        values = getattr(spec, name)
        if len(values) != len(spec.depths) or not values or not min(values) > 0:
            raise ValueError(f"{name} is {values}; wanted a positive number for each of the {len(spec.depths)} stages")
    if spec.resolution < LEAST_RESOLUTION:
        raise ValueError(
            f"resolution is {spec.resolution} pixels; wanted {LEAST_RESOLUTION} or more, which five halvings leave a pixel of"
        )


def regnet(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int, *, squeeze: float = 0.0, resolution: int, stem: int
) -> AnyNet:
    """The RegNet whose widths follow a line: u_j = w_0 + w_a j, s_j = log(u_j / w_0) / log w_m, w_j = w_0 w_m^round(s_j),
    rounded to multiples of 8; equal neighbours make a stage.

    Source: Radosavovic et al. 2020 (arXiv 2003.13678), equations 2 to 4.
    """
    from papers.fast_model_scaling.scaling import compatible

    line = w_0 + w_a * np.arange(depth)
    steps = np.round(np.log(line / w_0) / np.log(w_m))
    widths, depths = np.unique(np.round(w_0 * w_m**steps / 8).astype(int) * 8, return_counts=True)
    stages = len(widths)
    fitted, groups = compatible(tuple(map(int, widths)), (1.0,) * stages, (group_width,) * stages)
    return AnyNet(
        depths=tuple(map(int, depths)), widths=fitted, strides=(2,) * stages, bottlenecks=(1.0,) * stages, group_widths=groups,
        stem=stem, squeeze=squeeze, resolution=resolution,
    )  # fmt: skip


def named(name: str) -> Spec:
    """A published network: EfficientNet-B0 to B5, RegNetX and RegNetY from 200MF to 32GF, ResNet-50."""
    if name == "ResNet-50":
        return AnyNet(**published.RESNET_50)  # type: ignore[arg-type]
    if name in published.EFFICIENTNETS:
        width, depth, resolution = published.EFFICIENTNETS[name]
        base: dict[str, Any] = dict(published.EFFICIENTNET_B0)
        base |= {"depths": tuple(math.ceil(each * depth) for each in base["depths"])}
        base |= {"widths": tuple(divisible(each * width) for each in base["widths"]), "resolution": resolution}
        base |= {part: divisible(base[part] * width) for part in ("stem", "head")}
        return EfficientNet(**base)
    if name in published.REGNETS:
        squeeze = published.REGNET_SQUEEZE if name.startswith("RegNetY") else 0.0
        line = published.REGNETS[name]
        return regnet(*line, squeeze=squeeze, resolution=published.REGNET_RESOLUTION, stem=published.REGNET_STEM)
    raise ValueError(f"no network {name!r}; there are ResNet-50, {', '.join([*published.EFFICIENTNETS, *published.REGNETS])}")


def tiny(name: str, classes: int = 8) -> Spec:
    """Two small networks for crops of photographs, EN-tiny and RegNet-tiny; sizes chosen by their cost."""
    if name == "EN-tiny":
        return EfficientNet(
            stem=16, depths=(1, 1, 2), widths=(16, 24, 32), expands=(1, 4, 4), kernels=(3, 3, 3), strides=(2, 2, 1), head=128,
            resolution=LEAST_RESOLUTION, classes=classes,
        )  # fmt: skip
    if name == "RegNet-tiny":
        return AnyNet(
            stem=16, depths=(1, 2, 2), widths=(24, 48, 96), strides=(2, 2, 1), group_widths=(8, 8, 8), bottlenecks=(1.0,) * 3,
            squeeze=0.25, resolution=LEAST_RESOLUTION, classes=classes,
        )  # fmt: skip
    raise ValueError(f"no tiny network {name!r}; there are EN-tiny and RegNet-tiny")
