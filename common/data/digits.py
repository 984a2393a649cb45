"""Handwritten digits: 1,797 grey images of 8 x 8, ten classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from common import UserError
from common.data import find


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, split into disjoint parts.

    Attributes:
        train, test: images, channels last, float32 from 0 to 1.
        train_labels, test_labels: classes from 0.
        names: of the classes.
        source, sha256: which file or package they came from.
    """

    train: Float32[np.ndarray, "train height width channel"]
    train_labels: Int64[np.ndarray, " train"]
    test: Float32[np.ndarray, "test height width channel"]
    test_labels: Int64[np.ndarray, " test"]
    names: tuple[str, ...]
    source: str
    sha256: str


def digits() -> Images:
    """The test part of the UCI set "Optical Recognition of Handwritten Digits"; every fifth image is held out.

    Raises:
        UserError: the file is missing, damaged or no archive of ``images`` and ``labels``.
    """
    found = find("images/digits.npz", "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e")
    try:
        with np.load(found.path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"].astype(np.int64)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{found.path} is no npz archive of images and labels ({error}); replace or remove it") from error
    pixels = (images / 16).astype(np.float32)[..., None]
    held = np.arange(len(pixels)) % 5 == 4
    names = tuple(str(label) for label in range(10))
    return Images(pixels[~held], labels[~held], pixels[held], labels[held], names, found.source, found.sha256)
