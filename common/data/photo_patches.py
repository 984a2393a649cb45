"""Crops of photographs, to be told apart by the photograph they were cut from: a small task with real image statistics."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import numpy as np

from common import UserError
from common.data.digits import Images

PHOTOGRAPHS = {
    "astronaut": (512, 512),
    "chelsea": (300, 451),
    "coffee": (400, 600),
    "hubble_deep_field": (872, 1000),
    "immunohistochemistry": (512, 512),
    "retina": (1411, 1411),
    "rocket": (427, 640),
    "stereo_motorcycle": (500, 741),
}
"""The colour photographs inside scikit-image's wheel, with height and width; the class of a crop is the place in this list."""

TILE, CROP = 64, 32
FLAT = 0.02


def photo_patches(train: int = 1024, test: int = 256, seed: int = 0) -> Images:
    """``train`` and ``test`` crops of 32 x 32 RGB from each photograph.

    The photographs are cut into tiles of 64 x 64; every fourth tile is for testing, and a crop lies inside one tile, so no
    pixel is in both parts. Crops whose deviation is under 0.02 (the black around the retina) are drawn again.

    Raises:
        UserError: scikit-image is missing, or has no or another version of a photograph.
    """
    photographs = {name: _photograph(name) for name in PHOTOGRAPHS}
    rng = np.random.default_rng(seed)
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for image in photographs.values():
        for held, count in ((False, train), (True, test)):
            parts[held].append(_crops(image, held, count, rng))
    labels = {held: np.repeat(np.arange(len(photographs)), len(crops[0])) for held, crops in parts.items()}
    whole = hashlib.sha256(b"".join(image.tobytes() for image in photographs.values())).hexdigest()
    return Images(
        np.concatenate(parts[False]), labels[False], np.concatenate(parts[True]), labels[True],
        tuple(photographs), f"photographs of scikit-image {version('scikit-image')}", whole,
    )  # fmt: skip


def _photograph(name: str) -> np.ndarray:
    try:
        from skimage import data
    except ImportError as error:
        raise UserError("the photographs come with the package scikit-image, which is not installed here") from error
    try:
        image = getattr(data, name)()
    except Exception as error:  # a wheel without the file tries to download it, in several ways
        raise UserError(f"the installed scikit-image has no photograph {name!r} ({error}); install a wheel that has") from error
    image = image[0] if isinstance(image, tuple) else image  # a stereo pair: the left one
    if image.shape != (*PHOTOGRAPHS[name], 3) or image.dtype != np.uint8:
        raise UserError(
            f"the photograph {name!r} of the installed scikit-image is {image.dtype} {image.shape}, not uint8 {(*PHOTOGRAPHS[name], 3)}"
        )
    return image


def _crops(image: np.ndarray, held: bool, count: int, rng: np.random.Generator) -> np.ndarray:
    rows, columns = image.shape[0] // TILE, image.shape[1] // TILE
    tiles = np.argwhere((np.add.outer(np.arange(rows), 2 * np.arange(columns)) % 4 == 0) == held) * TILE
    windows = np.lib.stride_tricks.sliding_window_view(image, (CROP, CROP), axis=(0, 1))
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        corner = tiles[rng.integers(len(tiles), size=count)] + rng.integers(0, TILE - CROP + 1, (count, 2))
        crops = windows[corner[:, 0], corner[:, 1]].transpose(0, 2, 3, 1).astype(np.float32) / 255
        found.append(crops[crops.std(axis=(1, 2, 3)) >= FLAT])
    return np.concatenate(found)[:count]
