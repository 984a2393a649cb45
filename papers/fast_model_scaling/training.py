"""Tiny networks, scaled by every rule and trained to tell photographs apart by crops of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from common.data.digits import Images
from common.data.photo_patches import photo_patches
from common.processes import dealt
from common.runner import Run
from common.training import warmup_cosine
from papers.fast_model_scaling.config import BASES, Config, Framework
from papers.fast_model_scaling.scaling import RULES, scale
from papers.fast_model_scaling.specs import tiny

Job = tuple[str, str, float, int]
"""Base, rule, s, number of the training."""

LEFT_OUT = ("d", "r")
"""Rules whose accuracy is reported but not compared: depth alone and resolution alone."""


def accuracies(config: Config, run: Run) -> dict[str, float]:
    """The claim; all accuracies are kept beside it."""
    found = trainings(config, run)
    mean = {key[:3]: 0.0 for key in found}
    for (name, rule, s, _), accuracy in found.items():
        mean[name, rule, s] += 100 * accuracy / config.seeds
    run.keep("accuracies", {f"{name}, {rule}, {s:g}": each for (name, rule, s), each in mean.items()})
    at = {name: {r: a for (n, r, s), a in mean.items() if n == name and s == config.compared_s} for name in BASES}
    compared = {name: {rule: a for rule, a in each.items() if rule not in LEFT_OUT} for name, each in at.items()}
    gains = [a - mean[name, "base", 1.0] for name, each in compared.items() for a in each.values()]
    spread = {f"{name}, best over worst": max(each.values()) - min(each.values()) for name, each in compared.items()}
    return spread | {"gain over the base": float(np.mean(gains))}


def trainings(config: Config, run: Run) -> dict[Job, float]:
    """Test accuracy of every training; those of a run that was cut short are not made again."""
    scales = config.trained_s if run.only is None else [config.compared_s]
    jobs: list[Job] = [(name, "base", 1.0, seed) for name in BASES for seed in range(config.seeds)]
    jobs += [
        (name, rule, s, seed) for s in scales for name in BASES for rule in config.trained_rules for seed in range(config.seeds)
    ]
    store = run.checkpoint("trainings")
    saved = store.load()
    done: dict[str, float] = saved[1]["accuracies"] if saved else {}
    left = [job for job in jobs if _key(job) not in done]
    # The dearest first, so that no process waits long for the other at the end.
    left.sort(key=lambda job: -job[2])
    done_jobs = dealt(train, [(config, *job) for job in left], config.workers)
    for job, accuracy in zip(run.track(left, "networks trained"), done_jobs, strict=True):
        done[_key(job)] = accuracy
        store.save({"done": np.array(len(done))}, {"accuracies": done})
    data = _images(config)
    run.used("photo_patches", data.source, data.sha256)
    return {job: done[_key(job)] for job in jobs}


def _key(job: Job) -> str:
    return ", ".join(map(str, job))


def train(config: Config, name: str, rule: str, s: float, number: int) -> float:
    """Share of the test crops that a scaled network gets right after its training.

    AdamW with a warm-up of a tenth and half a cosine, the same for all; crops of every step are drawn from the training crops,
    mirrored by chance and resized to the network's resolution.
    """
    spec = tiny(name)
    if rule != "base" and config.mechanism:
        spec = scale(spec, RULES[rule], s)
    data = _images(config)
    seed = config.seed + 1000 * number
    batch_at, held = _batches(data, config, spec.resolution, seed), _held(data, spec.resolution)
    schedule = warmup_cosine(config.steps, config.steps // 10, 0.05)
    if config.framework is Framework.jax:
        return _train_jax(spec.network(), seed, batch_at, held, schedule, config)
    return _train_torch(spec.network(), seed, batch_at, held, schedule, config)


def _train_torch(
    net: Any, seed: int, batch_at: Callable[[int], Any], held: Any, schedule: Callable[[int], float], config: Config
) -> float:
    import torch
    import torch.nn.functional as F

    from common.training import torch_loop
    from papers.fast_model_scaling.model_torch import Network

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Network(net, seed).to(device)
    optimizer = torch_loop.adamw(model, config.rate, weight_decay=0.05)
    torch_loop.train(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batch_at, optimizer, config.steps, schedule)
    return torch_loop.evaluate(model, held, lambda m, b: (m(b[0]).argmax(1) == b[1]).float().mean())


def _train_jax(
    net: Any, seed: int, batch_at: Callable[[int], Any], held: Any, schedule: Callable[[int], float], config: Config
) -> float:
    import optax

    from common.training import jax_loop
    from papers.fast_model_scaling.model_jax import Network

    model = Network(net, seed)

    def loss(m: Any, b: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(m(b[0]), b[1]).mean()

    jax_loop.train(model, loss, batch_at, jax_loop.adamw(config.rate, weight_decay=0.05), config.steps, schedule)
    return jax_loop.evaluate(model, held, lambda m, b: (m(b[0]).argmax(1) == b[1]).mean())


@cache
def _crops(train: int, test: int, seed: int) -> Images:
    return photo_patches(train, test, seed)


def _images(config: Config) -> Images:
    return _crops(config.train_images, config.test_images, config.seed)


def _batches(data: Images, config: Config, side: int, seed: int) -> Callable[[int], Any]:
    def batch_at(step: int) -> Any:
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(len(data.train), size=config.batch)
        images = data.train[chosen]
        mirrored = rng.random(config.batch) < 0.5
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return resized(images, side), data.train_labels[chosen]

    return batch_at


def _held(data: Images, side: int, size: int = 256) -> Iterator[Any]:
    for start in range(0, len(data.test), size):
        yield resized(data.test[start : start + size], side), data.test_labels[start : start + size]


def resized(images: Float32[np.ndarray, "batch height width 3"], side: int) -> Float32[np.ndarray, "batch side side 3"]:
    """Bilinear, pixel centres kept, and moved to a mean of about 0 and a deviation of about 1."""
    shifted = (images - np.float32(0.5)) * np.float32(4)
    down, across = (_bilinear(size, side) for size in images.shape[1:3])
    return np.einsum("ih,bhwc,jw->bijc", down, shifted, across, optimize=True) if side != images.shape[1] else shifted


@cache
def _bilinear(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """The matrix that interpolates ``size`` pixels at the centres of ``side`` ones."""
    at = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    low = np.minimum(at.astype(int), size - 2)
    matrix = np.zeros((side, size), np.float32)
    matrix[np.arange(side), low] = 1 - (at - low)
    matrix[np.arange(side), low + 1] += at - low
    return matrix
