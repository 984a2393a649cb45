"""Images of a search in three disjoint parts: for weights, for architecture parameters, for what is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import repeat

from common.data.digits import Images
from papers.proxyless_nas import space
from papers.proxyless_nas.space import Space

Part = tuple[Any, np.ndarray]
"""Images, an array or what is indexed like one, and labels."""


@dataclass(frozen=True, eq=False)
class Task:
    """A space with its images; each part is (images, labels)."""

    name: str
    space: Space
    weights: Part
    alphas: Part
    test: Part
    source: str
    sha256: str


def digits() -> Task:
    """Handwritten digits, each pixel doubled in both directions; every third training image is for the architecture."""
    from common.data import digits as images

    return _task("digits", space.digits(), images.digits(), doubled=True)


def photos(seed: int) -> Task:
    """Crops of photographs; test crops lie in other regions, every third training crop is for the architecture."""
    from common.data.photo_patches import photo_patches

    return _task("photographs", space.photos(), photo_patches(train=768, test=256, seed=seed), doubled=False)


def _task(name: str, where: Space, images: Images, doubled: bool) -> Task:
    def prepared(pixels: np.ndarray) -> np.ndarray:
        whole = repeat(pixels, "n height width c -> n (height 2) (width 2) c") if doubled else pixels
        return np.ascontiguousarray(whole - 0.5, np.float32)

    train = prepared(images.train)
    held = np.arange(len(train)) % 3 == 2
    return Task(
        name, where, (train[~held], images.train_labels[~held]), (train[held], images.train_labels[held]),
        (prepared(images.test), images.test_labels), images.source, images.sha256,
    )  # fmt: skip


def joined(one: Part, other: Part) -> Part:
    """Both parts as one."""
    images = one[0].joined(other[0]) if hasattr(one[0], "joined") else np.concatenate([one[0], other[0]])
    return images, np.concatenate([one[1], other[1]])


class Batches:
    """The batch of a step: the images in a new order each time they have all been seen; a function of seed and step."""

    def __init__(self, part: Part, size: int, seed: tuple[int, ...]) -> None:
        self.images, self.labels = part
        self.size, self.seed = min(size, len(self.labels)), seed
        self._epoch, self._order = -1, np.zeros(0, int)

    def __call__(self, step: int) -> Part:
        epoch, place = divmod(step, len(self.labels) // self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((*self.seed, epoch)).permutation(len(self.labels))
        chosen = self._order[place * self.size : (place + 1) * self.size]
        return self.images[chosen], self.labels[chosen]
