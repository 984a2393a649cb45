"""Train a model of the zoo from its recipe: ``nox -s train-zoo -- byte_lm.v1``.

The weights, in bfloat16, and what they are worth go to ``outputs/zoo/<name>.safetensors`` and ``.json``; a training that was
killed goes on from its last checkpoint. ``--freeze`` puts them into ``data/zoo``, where a version is never replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from common import ROOT, UserError
from common.architecture import ResNet, Transformer, VisionTransformer
from common.checkpoint import Checkpoint, write_whole
from common.data import text
from common.data.digits import Images, digits
from common.data.photo_patches import photo_patches
from common.locks import exclusive, outputs
from common.machine import machine, versions
from common.models import transformer_torch, vision_torch
from common.models.weights import Weights, from_torch, initial_weights, to_torch
from common.training import bits_per_byte, torch_loop, warmup_cosine
from common.zoo import INDEX, Trained, read
from common.zoo.recipes import RECIPES, Recipe

Batch = Callable[[int], tuple[np.ndarray, np.ndarray]]


def train(name: str, folder: Path, seconds: float | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train a model and write ``<name>.safetensors`` and ``<name>.json`` into the folder.

    Args:
        seconds: stop after about this long, for a look; the schedule stays that of the whole training.

    Returns:
        what the JSON file holds: the recipe's metric, the quality before and after, and where it was made.
    """
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    model = build(recipe)
    before, _ = quality(recipe, model)
    loss, batch_at = _task(recipe)
    stop = _Stop(seconds)
    # A checkpoint of another recipe is not gone on from.
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    checkpoint = None if seconds else Checkpoint(folder / f"{name}.{key}.checkpoint")
    history = torch_loop.train(
        model,
        loss,
        batch_at,
        torch_loop.adamw(model, recipe.rate, recipe.weight_decay),
        recipe.steps,
        schedule=warmup_cosine(recipe.steps, recipe.steps // 20, final=0.01),
        checkpoint=checkpoint,
        every=200,
        track=stop.track if quiet else lambda steps, label: stop.track(_shown(steps, name), label),
    )
    path = folder / f"{name}.safetensors"
    write_whole(path, encode(from_torch(model)))
    to_torch(model, read(path))  # what is judged is what was written, in bfloat16
    after, more = quality(recipe, model)
    found = {
        "metric": recipe.metric,
        "before": before,
        "quality": after,
        **more,
        "band": list(recipe.band),
        "steps": len(history.losses),
        "seconds": round(history.seconds),
        "machine": machine(),
        "versions": versions(),
    }
    write_whole(folder / f"{name}.json", (json.dumps(found, indent=1) + "\n").encode())
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)
    return found


def freeze(name: str, folder: Path) -> Path:
    """Put trained weights into ``data/zoo`` as the version that everybody loads."""
    target, index = ROOT / "data" / "zoo" / f"{name}.safetensors", ROOT / "data" / INDEX
    known = json.loads(index.read_text()) if index.exists() else {}
    if name in known:
        raise UserError(f"{name} is frozen already; a better one gets the next version, as a recipe of its own")
    if not (folder / f"{name}.json").exists():
        raise UserError(f"{folder} holds no trained {name}; run nox -s train-zoo -- {name} first")
    found = json.loads((folder / f"{name}.json").read_text())
    low, high = RECIPES[name].band
    if not low <= found["quality"] <= high:
        raise UserError(f"{name} has a quality of {found['quality']:.4g}, outside of the recipe's band {low:g} to {high:g}")
    content = (folder / f"{name}.safetensors").read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content)
    known[name] = {"sha256": hashlib.sha256(content).hexdigest(), "quality": found}
    write_whole(index, (json.dumps(dict(sorted(known.items())), indent=1) + "\n").encode())
    return target


def build(recipe: Recipe) -> torch.nn.Module:
    """A fresh model."""
    weights = initial_weights(recipe.architecture, recipe.seed)
    return Trained("", recipe.architecture, weights, {}, "", "").torch()


def quality(recipe: Recipe, model: torch.nn.Module) -> tuple[float, dict[str, Any]]:
    """The recipe's metric, and what else is worth keeping."""
    if isinstance(recipe.architecture, Transformer):
        held = text.king_james().held_out
        found = bits_per_byte(torch_loop.evaluate(model, text.windows(held, 16, recipe.length)))
        return found, _expert_use(model, held, recipe.length) if recipe.architecture.experts else {}
    images = _images(recipe)
    test = torch.from_numpy(images.test), torch.from_numpy(images.test_labels)
    return vision_torch.accuracy(model, *test), {}


def encode(weights: Weights) -> bytes:
    """The bytes of a safetensors file of the weights in bfloat16."""
    import ml_dtypes
    from safetensors.numpy import save

    return save({name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()})


def _task(recipe: Recipe) -> tuple[Callable[..., torch.Tensor], Callable[[int], Any]]:
    """(loss, batch_at)."""
    if isinstance(recipe.architecture, Transformer):
        balance = recipe.balance

        def next_byte(model: Any, batch: torch.Tensor) -> torch.Tensor:
            routes: list[transformer_torch.Route] = []
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch[:, :-1], routes)
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            return loss + balance * transformer_torch.balance_loss(routes) if routes else loss

        return next_byte, text.batches(text.king_james().train, recipe.batch, recipe.length, recipe.seed)
    images = _images(recipe)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((recipe.seed, step))
        rows = rng.integers(0, len(images.train), recipe.batch)
        return _moved(images.train[rows], recipe, rng), images.train_labels[rows]

    return vision_torch.classification_loss, batch_at


def _images(recipe: Recipe) -> Images:
    return digits() if isinstance(recipe.architecture, VisionTransformer) else photo_patches()


def _moved(images: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Photographs mirrored half of the time; digits turned, stretched, sheared and shifted a little."""
    count, size = images.shape[:2]
    if isinstance(recipe.architecture, ResNet):
        return np.where(rng.random((count, 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
    angle = rng.uniform(-0.15, 0.15, count)
    draws = ((0.95, 1.05, (count, 2)), (-0.1, 0.1, (count,)), (-0.4, 0.4, (count, 2)))
    stretch, shear, shift = (np.asarray(rng.uniform(low, high, shape)) for low, high, shape in draws)
    turn = np.array([[np.cos(angle), np.sin(angle) + shear], [-np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    centred = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij")).reshape(2, -1)
    places = turn @ centred * stretch[:, :, None] + (size - 1) / 2 + shift[:, :, None]
    which = np.broadcast_to(np.arange(count)[:, None], (count, size * size))
    found = map_coordinates(images[..., 0], [which, places[:, 0], places[:, 1]], order=1, prefilter=False)
    return found.reshape(images.shape).astype(np.float32)


@torch.no_grad()
def _expert_use(model: Any, held: np.ndarray, length: int) -> dict[str, Any]:
    """Share of the choices that each expert gets, by layer, on held-out text."""
    shares: list[np.ndarray] = []
    for batch in itertools.islice(text.windows(held, 16, length), 8):
        routes: list[transformer_torch.Route] = []
        model(torch.from_numpy(batch[:, :-1]), routes)
        shares.append(np.array([np.bincount(r.chosen.flatten(), minlength=r.probabilities.shape[1]) for r in routes]))
    counts = np.sum(shares, axis=0)
    return {"expert_use": (counts / counts.sum(1, keepdims=True)).round(4).tolist()}


class _Stop:
    """Ends the steps when the time is over."""

    def __init__(self, seconds: float | None) -> None:
        self.end = time.monotonic() + seconds if seconds else None

    def track(self, steps: Iterable[int], label: str) -> Iterator[int]:
        return itertools.takewhile(lambda _: self.end is None or time.monotonic() < self.end, steps)


def _shown(steps: Iterable[int], name: str) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(list(steps), f"training {name}", console=Console(stderr=True))


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s train-zoo --", description=__doc__.partition("\n\n")[0].replace("``", ""))
    parser.add_argument("name", choices=sorted(RECIPES), help="the model and its version")
    parser.add_argument("--seconds", type=float, help="stop early, after about so long; the whole training is the default")
    parser.add_argument("--folder", type=Path, default=outputs() / "zoo", help="where the weights go (default: outputs/zoo)")
    parser.add_argument("--freeze", action="store_true", help="only put the trained weights in the folder into data/zoo")
    words = parser.parse_args()
    try:
        if words.freeze:
            print(f"frozen: {freeze(words.name, words.folder)}")
            return 0
        words.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(words.folder / words.name):
            found = train(words.name, words.folder, words.seconds)
    except UserError as error:
        print(f"train-zoo: {error}", file=sys.stderr)
        return 2
    low, high = found["band"]
    inside = low <= found["quality"] <= high
    print(f"{words.name}: {found['metric']}: {found['before']:.4g} before, {found['quality']:.4g} after {found['steps']} steps")
    print(f"the recipe's band is {low:g} to {high:g}: {'inside' if inside else 'outside'}")
    return 0 if inside or words.seconds else 1


if __name__ == "__main__":
    sys.exit(main())
