"""ImageNet from a folder of one's own, decoded as batches ask for it; what ``preset=paper`` searches on."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from common import UserError
from papers.proxyless_nas import space
from papers.proxyless_nas.data import Task

HELD = 50_000
"""Training images that are kept for the architecture parameters (section 4.2)."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels, as torchvision gives them."""


class Folder:
    """Images by index, as an array would give them: ``folder[indices]`` is (count, 224, 224, 3), decoded there and then.

    Args:
        train: a random part of each image, mirrored or not, drawn from seed and indices; else the middle.
    """

    def __init__(self, files: list[Path], train: bool, seed: int = 0, size: int = 224) -> None:
        self.files, self.train, self.seed, self.size = files, train, seed, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Float32[np.ndarray, "count height width channel"]:
        places = np.arange(len(self))[index]
        seeds = np.random.default_rng((self.seed, *places[:8].tolist())).integers(2**31, size=len(places))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(self._decoded, places.tolist(), seeds.tolist())))

    def joined(self, other: Folder) -> Folder:
        return Folder([*self.files, *other.files], self.train, self.seed, self.size)

    def _decoded(self, place: int, seed: int) -> np.ndarray:
        from PIL import Image

        with Image.open(self.files[place]) as opened:
            image = opened.convert("RGB")
        box = _random_box(image.size, np.random.default_rng(seed)) if self.train else _middle(image.size)
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box), np.float32) / 255
        if self.train and seed % 2:
            pixels = pixels[:, ::-1]
        return (pixels - np.float32(MEAN)) / np.float32(DEVIATION)


def imagenet(seed: int) -> Task:
    """The task of the paper; ``imagenet/train`` and ``imagenet/val`` below REPRODUCTION_DATA hold a folder for each class.

    Raises:
        UserError: they are not there, or the two have other classes.
    """
    root = Path(os.environ.get("REPRODUCTION_DATA") or ".") / "imagenet"
    parts = {part: sorted(path for path in (root / part).glob("*") if path.is_dir()) for part in ("train", "val")}
    if not parts["train"] or [p.name for p in parts["train"]] != [p.name for p in parts["val"]]:
        raise UserError(
            f"no ImageNet in {root}: wanted train/<class>/<image> and val/<class>/<image> with the same classes; set "
            "REPRODUCTION_DATA to the folder that holds imagenet"
        )
    files = {
        part: [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
        for part, folders in parts.items()
    }
    held = np.zeros(len(files["train"]), bool)
    held[np.random.default_rng(seed).permutation(len(held))[: min(HELD, len(held) // 3)]] = True
    of = {
        "weights": [each for each, out in zip(files["train"], held, strict=True) if not out],
        "alphas": [each for each, out in zip(files["train"], held, strict=True) if out],
        "test": files["val"],
    }
    read = {
        name: (Folder([path for path, _ in rows], name != "test", seed), np.array([label for _, label in rows]))
        for name, rows in of.items()
    }
    whole = space.imagenet(classes=len(parts["train"]))
    return Task("ImageNet", whole, read["weights"], read["alphas"], read["test"], f"local {root}", f"{len(held)} images")


def _random_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A part of 8 to 100 per cent of the area and of 3:4 to 4:3, where one fits; else the middle."""
    width, height = size
    for _ in range(10):
        area, shape = width * height * rng.uniform(0.08, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * shape), np.sqrt(area / shape)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return _middle(size)


def _middle(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The middle square of 7/8 of the shorter side: 224 of 256."""
    side = min(size) * 7 / 8
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side
