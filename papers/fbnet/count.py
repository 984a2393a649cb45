"""What the published nets cost, in every reading: ``python -m papers.fbnet.count``."""

from __future__ import annotations

import math
from typing import NamedTuple

from common.nas import ConvNet, mobilenet_v2
from papers.fbnet import published
from papers.fbnet.space import CODES, Space, published_net

READINGS = {
    "A, zoo": ("A", False, None),
    "A, paper": ("A", True, None),
    "B, zoo": ("B", False, None),
    "B, file": ("B file", True, None),
    "B, file, narrow last": ("B file", True, published.LAST["A"]),
    "C, zoo": ("C", False, None),
    "Samsung S8": ("Samsung S8", True, None),
    "iPhone X": ("iPhone X", True, None),
    "96-0.35-1": ("96-0.35-1", True, None),
}
"""Name -> architecture, whether blocks of expansion 1 have a first convolution, another last width."""


class Cost(NamedTuple):
    """Of one image.

    Attributes:
        macs: multiply-adds of convolutions and the classifier.
        pool: additions of the mean before the classifier, which the model zoo counts too.
        weights: of convolutions and the classifier, without norms and biases, as the model zoo counts.
        parameters: all that is trained.
    """

    macs: int
    pool: int
    weights: int
    parameters: int


def cost(net: ConvNet, size: int) -> Cost:
    total = net.count(size, size)
    *_, (layer, height, width) = net.at(size, size)
    pixels = math.ceil(height / layer.stride) * math.ceil(width / layer.stride)
    weights = sum(math.prod(shape) for shape in net.shapes().values() if len(shape) > 1)
    return Cost(total.macs, pixels * layer.outputs, weights, total.parameters)


def costs() -> dict[str, Cost]:
    """Of all readings, and of MobileNetV2 at three widths."""
    found = {
        reading: cost(published_net(name, always_expand=expand, last=last), Space.of(name).size)
        for reading, (name, expand, last) in READINGS.items()
    }
    for width, size in ((1.0, 224), (1.3, 224), (0.35, 96)):
        found[f"MobileNetV2-{width}, {size}"] = cost(mobilenet_v2(width), size)
    return found


def space_size(space: Space) -> int:
    """How many architectures there are: the product over layers of the candidates."""
    return math.prod(len(each) for each in space.candidates())


def main() -> None:
    print(f"{'reading':22} {'M MACs':>9} {'with pool':>12} {'weights':>10} {'with norms':>10}")
    for name, each in costs().items():
        print(f"{name:22} {each.macs / 1e6:9.3f} {each.macs + each.pool:12,} {each.weights:10,} {each.parameters:10,}")
    print(f"{len(CODES)} candidates at {len(Space.of('A').places)} places: {space_size(Space.of('A')):.3g} architectures")


if __name__ == "__main__":
    main()
