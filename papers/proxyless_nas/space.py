"""The space that is searched, as data: places with candidates between fixed layers, and the networks that were found in it.

Source: section 4.2 of the paper for the space on ImageNet; released configurations for the searched networks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.nas import ConvNet, Convolution, InvertedResidual
from papers.proxyless_nas import published


class Candidate(NamedTuple):
    """An inverted residual by kernel and expansion; ``ZERO`` puts out 0 beside the shortcut, so it drops the layer."""

    kernel: int
    expand: int

    def __str__(self) -> str:
        return f"k{self.kernel}e{self.expand}" if self.kernel else "Z"


ZERO = Candidate(0, 0)
CANDIDATES = tuple(Candidate(kernel, expand) for kernel in (3, 5, 7) for expand in (3, 6))
SEVEN = (*CANDIDATES, Candidate(9, 3))
"""Seven that all compute, for the rows about memory: Zero keeps nothing."""


def parse(line: str) -> tuple[Candidate, ...]:
    """ "k5e3 Z | k7e6" as candidates; bars and spaces separate.

    Raises:
        ValueError: a word that is neither Z nor a kernel with an expansion.
    """
    found = []
    for place, word in enumerate(line.replace("|", " ").split()):
        match = re.fullmatch(r"k(\d+)e(\d+)", word)
        if not match and word != "Z":
            raise ValueError(f"place {place} is {word!r}; wanted Z or a candidate such as k5e3")
        found.append(Candidate(int(match[1]), int(match[2])) if match else ZERO)
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layer whose operation is searched.

    Attributes:
        row: of the Pixel table that it stands for, in a space whose shapes are not in the table; else empty.
    """

    inputs: int
    outputs: int
    stride: int
    candidates: tuple[Candidate, ...]
    row: str = ""

    def __post_init__(self) -> None:
        where = f"the place {self.inputs}->{self.outputs}, stride {self.stride}"
        if not set(self.candidates) - {ZERO}:
            raise ValueError(f"{where} has {'only Zero as a' if self.candidates else 'no'} candidate; give it one that computes")
        if ZERO in self.candidates and not self.residual:
            raise ValueError(f"{where} has Zero as a candidate but no shortcut around it; leave Zero out")
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"{where} has a candidate twice: {' '.join(map(str, self.candidates))}")

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs

    def layer(self, candidate: Candidate) -> InvertedResidual | None:
        """The layer of a candidate with its shortcut; None where the layer is dropped."""
        if candidate not in self.candidates:
            raise ValueError(f"{candidate} is no candidate here; wanted one of {' '.join(map(str, self.candidates))}")
        if candidate == ZERO:
            return None
        return InvertedResidual(
            inputs=self.inputs, outputs=self.outputs, kernel=candidate.kernel, stride=self.stride, expand=candidate.expand
        )

    def key(self, height: int, width: int, candidate: Candidate) -> str:
        """Of this candidate at this size of image, in a table of latencies."""
        if self.residual:
            return f"{height}x{width}x{self.outputs} skip {candidate}"
        small = f"{math.ceil(height / self.stride)}x{math.ceil(width / self.stride)}x{self.outputs}"
        return f"{height}x{width}x{self.inputs}->{small} {candidate}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """A stem, a first block, places that are searched, a mixing convolution, the mean, a classifier.

    Attributes:
        size: of the square images.
    """

    stem: Convolution
    first: InvertedResidual
    places: tuple[Place, ...]
    last: Convolution
    classes: int
    size: int
    epsilon: float = 1e-3

    def network(self, choices: Sequence[Candidate]) -> ConvNet:
        """The network of one candidate for each place; dropped layers are gone."""
        if len(choices) != len(self.places):
            raise ValueError(f"{len(choices)} candidates for {len(self.places)} places; wanted one for each")
        layers = [place.layer(candidate) for place, candidate in zip(self.places, choices, strict=True)]
        kept = [layer for layer in layers if layer is not None]
        return ConvNet(layers=(self.stem, self.first, *kept, self.last), classes=self.classes, epsilon=self.epsilon)

    def at(self) -> Iterator[tuple[Place, int]]:
        """Each place with the size of the image that comes into it."""
        size = math.ceil(math.ceil(self.size / self.stem.stride) / self.first.stride)
        for place in self.places:
            yield place, size
            size = math.ceil(size / place.stride)


def build(
    *,
    channels: int,
    size: int,
    classes: int,
    fixed: tuple[int, int, int],
    widths: Sequence[int],
    cells: Sequence[int],
    strides: Sequence[int],
    candidates: Sequence[Candidate] = CANDIDATES,
    zero: bool = True,
    rows: Sequence[tuple[str, str]] = (),
) -> Space:
    """Stages of cells: the first cell of a stage has its stride, and Zero comes to the candidates where there is a shortcut.

    Args:
        fixed: widths of stem, first block and mixing convolution.
        zero: False leaves Zero out.
        rows: of the Pixel table, for each stage that of its first cell and that of the others.
    """
    stem = Convolution(inputs=channels, outputs=fixed[0], kernel=3, stride=2)
    first = InvertedResidual(inputs=fixed[0], outputs=fixed[1], expand=1)
    places, inputs = [], fixed[1]
    for stage, (width, count, stride) in enumerate(zip(widths, cells, strides, strict=True)):
        for cell in range(count):
            step, skips = stride if cell == 0 else 1, inputs == width and (cell > 0 or stride == 1)
            own = (*candidates, ZERO) if zero and skips else tuple(candidates)
            row = rows[stage][skips] if rows else ""
            places.append(Place(inputs=inputs, outputs=width, stride=step, candidates=own, row=row))
            inputs = width
    last = Convolution(inputs=inputs, outputs=fixed[2])
    return Space(stem=stem, first=first, places=tuple(places), last=last, classes=classes, size=size)


def imagenet(
    fixed: tuple[int, int, int] = (32, 16, 1280), widths: Sequence[int] = (24, 40, 80, 96, 192, 320), classes: int = 1000
) -> Space:
    """The paper's space: 21 places in six stages, images of 224 x 224."""
    sizes = {"channels": 3, "size": 224, "classes": classes}
    return build(**sizes, fixed=fixed, widths=widths, cells=(4, 4, 4, 4, 4, 1), strides=(2, 2, 2, 1, 2, 1))


def searched(name: str) -> ConvNet:
    """A network that the authors have found: "mobile", "gpu", "cpu" or "mobile_14"."""
    if name not in published.SEARCHED:
        raise ValueError(f"no searched network {name!r}; wanted one of {', '.join(published.SEARCHED)}")
    fixed, widths, line = published.SEARCHED[name]
    return imagenet(fixed, widths).network(parse(line))


_ROWS = {
    40: ("56x56x24->28x28x40", "28x28x40 skip"),
    80: ("28x28x40->14x14x80", "14x14x80 skip"),
    96: ("14x14x80->14x14x96", "14x14x96 skip"),
}


def photos() -> Space:
    """Three middle stages of the paper's space, nine places, on crops of 32 x 32 and with fewer channels."""
    return build(
        channels=3, size=32, classes=8, fixed=(8, 8, 64), widths=(12, 16, 24), cells=(3, 3, 3), strides=(2, 2, 1),
        rows=[_ROWS[40], _ROWS[80], _ROWS[96]],
    )  # fmt: skip


def digits() -> Space:
    """Two stages of it, four places of six candidates each and so 1,296 networks, on digits of 16 x 16."""
    return build(
        channels=1, size=16, classes=10, fixed=(8, 8, 48), widths=(12, 16), cells=(2, 2), strides=(2, 2), zero=False,
        rows=[_ROWS[40], _ROWS[80]],
    )  # fmt: skip
