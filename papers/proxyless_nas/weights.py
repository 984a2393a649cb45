"""Weights of a super-network by name, drawn once for both frameworks."""

from __future__ import annotations

import numpy as np

from common.nas import ConvNet
from papers.proxyless_nas.space import Space


def initial(space: Space, seed: int) -> dict[str, np.ndarray]:
    """Float64 weights of every layer and candidate, each drawn as :meth:`common.nas.ConvNet.initial_weights` does."""
    layers = {"stem": space.stem, "first": space.first, "last": space.last}
    for i, place in enumerate(space.places):
        layers |= {f"places.{i}.{j}": place.layer(c) for j, c in enumerate(place.candidates)}
    seeds = np.random.SeedSequence(seed).generate_state(len(layers) + 1)
    found: dict[str, np.ndarray] = {}
    for (name, layer), own in zip(layers.items(), seeds, strict=False):
        if layer is not None:
            drawn = ConvNet(layers=(layer,), classes=1).initial_weights(int(own))
            prefix = "layers.0."
            found |= {f"{name}.{key.removeprefix(prefix)}": each for key, each in drawn.items() if key.startswith(prefix)}
    head = np.random.default_rng(int(seeds[-1])).normal(0.0, 0.01, (space.classes, space.last.outputs))
    return found | {"head.weight": head, "head.bias": np.zeros(space.classes)}
