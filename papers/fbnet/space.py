"""The search space: a fixed macro-architecture whose layers each choose one of nine blocks.

    space = Space.of("A"); codes = parse("s | 3_3 3_1 s s | ...", space)
    space.net(codes).count(224, 224).macs

Source: the paper, section 3.1, Tables 1 and 2 and Figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.nas import ConvNet, Convolution, InvertedResidual
from common.nas.network import Layer
from papers.fbnet import published

CODES = ("3_1", "3_1g", "3_3", "3_6", "5_1", "5_1g", "5_3", "5_6", "s")
"""The candidates: kernel_expansion, g for two groups, s for skip."""


class Place(NamedTuple):
    """A layer that chooses: its channels, its stride and the size of the image that comes into it."""

    inputs: int
    outputs: int
    stride: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Space:
    """A macro-architecture: 3 x 3 convolution, stages of layers that choose, 1 x 1 convolution, mean, classifier.

    Attributes:
        size: of the image, in pixels.
        channels: of the image.
        stem: outputs of the first convolution. stem_stride: its stride.
        stages: (outputs, layers, stride of the first layer) of each stage.
        last: outputs of the last convolution.
        always_expand: blocks of expansion 1 have the first 1 x 1 convolution too, as in the paper and in the files of the nets
            for devices; the model zoo leaves it out, and with it the only grouped convolution that is shuffled.
    """

    size: int
    classes: int
    stages: tuple[tuple[int, int, int], ...]
    stem: int
    last: int
    channels: int = 3
    stem_stride: int = 2
    always_expand: bool = True

    def __post_init__(self) -> None:
        if not self.stages or min(self.size, self.classes, self.stem, self.last, *(v for s in self.stages for v in s)) < 1:
            raise ValueError(f"{self}: wanted one stage or more, and sizes from 1")

    @classmethod
    def of(cls, name: str, *, always_expand: bool = True, last: int | None = None) -> Space:
        """The macro-architecture of a published net; ``last`` overrides its last width."""
        narrow = name == "96-0.35-1"
        return cls(
            size=96 if narrow else 224, classes=1000, stages=published.NARROW if narrow else published.STAGES,
            stem=published.NARROW_STEM if narrow else published.STEM, last=last or published.LAST[name],
            always_expand=always_expand,
        )  # fmt: skip

    @property
    def places(self) -> list[Place]:
        """The layers that choose, in order."""
        found, inputs, size = [], self.stem, math.ceil(self.size / self.stem_stride)
        for outputs, layers, stride in self.stages:
            for layer in range(layers):
                place = Place(inputs, outputs, 1 if layer else stride, size)
                found.append(place)
                inputs, size = outputs, math.ceil(size / place.stride)
        return found

    def candidates(self) -> list[list[Layer | None]]:
        """The nine blocks of each layer."""
        return [[block(place, code, self.always_expand) for code in CODES] for place in self.places]

    def first(self) -> Convolution:
        return Convolution(inputs=self.channels, outputs=self.stem, kernel=3, stride=self.stem_stride, activation="relu")

    def final(self) -> Convolution:
        return Convolution(inputs=self.stages[-1][0], outputs=self.last, activation="relu")

    def net(self, codes: Sequence[str]) -> ConvNet:
        """The network of one choice for each layer; identities are left out."""
        check(codes, self)
        blocks = [block(place, code, self.always_expand) for place, code in zip(self.places, codes, strict=True)]
        return ConvNet(layers=(self.first(), *(each for each in blocks if each), self.final()), classes=self.classes)


def block(place: Place, code: str, always_expand: bool = True) -> Layer | None:
    """A candidate at its place; None is the identity.

    Skip is the identity where stride is 1 and channels stay, else ReLU(norm(1 x 1 convolution with the stride)).
    """
    inputs, outputs, stride, _ = place
    if code == "s":
        if stride == 1 and inputs == outputs:
            return None
        return Convolution(inputs=inputs, outputs=outputs, stride=stride, activation="relu")
    kernel, expand = code.removesuffix("g").split("_")
    return InvertedResidual(
        inputs=inputs, outputs=outputs, kernel=int(kernel), stride=stride, expand=int(expand),
        groups=2 if code.endswith("g") else 1, activation="relu", always_expand=always_expand,
    )  # fmt: skip


def parse(text: str, space: Space) -> tuple[str, ...]:
    """The codes of an architecture written as text; bars are for the eye.

    Raises:
        ValueError: an unknown code, with its position; another number of codes than layers that choose.
    """
    codes = tuple(text.replace("|", " ").split())
    check(codes, space)
    return codes


def check(codes: Sequence[str], space: Space) -> None:
    wanted = len(space.places)
    for position, code in enumerate(codes, 1):
        if code not in CODES:
            raise ValueError(f"code {position} of the architecture is {code!r}; wanted one of {' '.join(CODES)}")
    if len(codes) != wanted:
        raise ValueError(f"the architecture has {len(codes)} codes; the space has {wanted} layers, wanted one code for each")


def show(codes: Sequence[str], space: Space) -> str:
    """The codes with bars between the stages."""
    parts, start = [], 0
    for _, layers, _ in space.stages:
        parts.append(" ".join(codes[start : start + layers]))
        start += layers
    return " | ".join(parts)


def published_net(name: str, *, always_expand: bool = True, last: int | None = None) -> ConvNet:
    """A published net in one reading."""
    space = Space.of(name, always_expand=always_expand, last=last)
    return space.net(parse(published.ARCHITECTURES[name], space))
