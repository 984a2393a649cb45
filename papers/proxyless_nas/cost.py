"""What a network of the space costs: multiply-adds, or the sum over a table of latencies; and its expectation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from common.nas import LatencyTable
from common.nas.network import Layer
from papers.proxyless_nas import published
from papers.proxyless_nas.space import ZERO, Space


@dataclass(frozen=True, eq=False)
class Cost:
    """E[cost] = rest + sum over places and candidates of p_j F_j (section 3.2.2); Zero costs 0.

    Attributes:
        rest: of the layers that are not searched.
        of: for each place the cost F of each candidate.
        unit: "ms" or "multiply-adds".
    """

    rest: float
    of: tuple[Float64[np.ndarray, " _"], ...]
    unit: str

    def total(self, picks: Sequence[int]) -> float:
        """Of the network that takes these candidates."""
        return self.rest + sum(float(cost[pick]) for cost, pick in zip(self.of, picks, strict=True))

    @property
    def uniform(self) -> float:
        """Expected cost when all candidates of a place are equally likely: the reference of the searches here."""
        return self.rest + sum(float(cost.mean()) for cost in self.of)


def macs(space: Space) -> Cost:
    """Multiply-adds of one image."""
    fixed = space.network([place.candidates[0] for place in space.places]).counts(space.size, space.size)
    places = []
    for place, size in space.at():
        layers = [place.layer(candidate) for candidate in place.candidates]
        places.append(np.array([layer.count(size, size).macs if layer else 0 for layer in layers], float))
    searched = sum(cost[0] for cost in places)
    return Cost(sum(each.macs for each in fixed) - searched, tuple(places), "multiply-adds")


def latency(space: Space, table: LatencyTable) -> Cost:
    """By a table that has a key for every layer of the space; a missing one is a KeyError that names it."""
    rest = table.total(key for key, _ in fixed_layers(space))
    places = []
    for place, size in space.at():
        keys = [(place.key(size, size, candidate), candidate) for candidate in place.candidates]
        places.append(np.array([0.0 if candidate == ZERO else table[key] for key, candidate in keys]))
    return Cost(rest, tuple(places), "ms")


def pixel_table() -> LatencyTable:
    """The authors' measurements on a Pixel 1 (Google, 2016), one image."""
    of = {
        f"{row} {candidate}": milliseconds
        for row, line in published.PIXEL.items()
        for candidate, milliseconds in zip(published.PIXEL_CANDIDATES, line, strict=True)
    }
    return LatencyTable(published.PIXEL_FIXED | of, "Pixel 1 (han-cai/files)")


def pixel(space: Space) -> Cost:
    """By the Pixel's table: the ImageNet space at its own shapes, the small spaces by the rows that their places stand for.

    The milliseconds of a small space are those of the large layers, so they tell candidates apart as a phone does and say
    nothing about how long the small network would take there.
    """
    table = pixel_table()
    places = []
    for place, size in space.at():
        row = [
            0.0 if candidate == ZERO else table[f"{place.row} {candidate}" if place.row else place.key(size, size, candidate)]
            for candidate in place.candidates
        ]
        places.append(np.array(row))
    return Cost(table.total(published.PIXEL_FIXED), tuple(places), "ms")


def fixed_layers(space: Space) -> list[tuple[str, Layer | None]]:
    """Keys and layers of what is not searched; None is the mean with the classifier."""
    first, *_, last = space.at()
    size = -(-last[1] // last[0].stride)
    return [
        (f"stem {space.size}x{space.size}x{space.stem.inputs}->{first[1]}x{first[1]}x{space.stem.outputs}", space.stem),
        (f"{first[1]}x{first[1]}x{space.stem.outputs}->{first[1]}x{first[1]}x{space.first.outputs} k3e1", space.first),
        (f"mix {size}x{size}x{space.last.inputs}->{size}x{size}x{space.last.outputs}", space.last),
        (f"classifier {space.last.outputs}->{space.classes}", None),
    ]
