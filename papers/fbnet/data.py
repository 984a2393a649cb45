"""Images in three parts: for the weights, for the logits of the architecture, and for the accuracy that is reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from common.data.digits import Images, digits
from common.data.photo_patches import photo_patches
from papers.fbnet.config import Config, Data


@dataclass(frozen=True, eq=False)
class Part:
    images: Float32[np.ndarray, "count height width channel"]
    labels: Int64[np.ndarray, " count"]

    def batch(self, places: Int64[np.ndarray, " batch"]) -> tuple[np.ndarray, np.ndarray]:
        return self.images[places], self.labels[places]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Parts:
    """Disjoint parts: of the training images a fifth is for the architecture (the paper, section 4.1)."""

    weights: Part
    architecture: Part
    test: Part
    classes: int
    source: str
    sha256: str


def load(config: Config) -> Parts:
    whole = _whole(config)
    rng = np.random.default_rng(config.data_seed)
    order = rng.permutation(len(whole.train_labels))
    cut = len(order) - round(len(order) * config.architecture_share)
    mean, deviation = whole.train.mean((0, 1, 2)), whole.train.std((0, 1, 2))

    def part(images: np.ndarray, labels: np.ndarray) -> Part:
        scaled = (images - mean) / deviation
        if config.data is Data.digits:
            # Each pixel of the 8 x 8 images becomes 2 x 2.
            scaled = scaled.repeat(2, 1).repeat(2, 2)
        return Part(scaled.astype(np.float32), labels)

    train, labels = whole.train, whole.train_labels
    return Parts(
        part(train[order[:cut]], labels[order[:cut]]), part(train[order[cut:]], labels[order[cut:]]),
        part(whole.test, whole.test_labels), len(whole.names), whole.source, whole.sha256,
    )  # fmt: skip


def _whole(config: Config) -> Images:
    if config.data is Data.digits:
        return digits()
    return photo_patches(config.train_crops, config.test_crops, config.data_seed)
