"""The two stages of the compression, what lies between them, and the packed file at the end."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from common import UserError
from common.architecture import VisionTransformer
from common.checkpoint import write_whole
from common.data.digits import Images
from common.models.weights import Weights
from common.training import warmup_cosine
from papers.gpusq_vit import compress
from papers.gpusq_vit.config import Config, Fault
from papers.gpusq_vit.store import Compressed


@dataclass(frozen=True)
class Variant:
    """A way through both stages.

    Attributes:
        bits: of weights and activations.
        labelled: False: the teacher's predictions stand for the labels.
        soft, feature: whether these losses are used.
        blocks: weights of the blocks in the second stage; None: as configured.
    """

    bits: int
    labelled: bool = True
    soft: bool = True
    feature: bool = True
    blocks: str | None = None

    @property
    def first(self) -> str:
        """A name of what the first stage depends on."""
        return "-".join([f"{self.bits} bits", *(n for n in ("labelled", "soft", "feature") if getattr(self, n))])


@dataclass(frozen=True, eq=False)
class Task:
    """What is compressed: a dense model, as weights, and the images."""

    architecture: VisionTransformer
    weights: Weights
    images: Images


class Pipeline:
    """Both stages for one task, in one framework.

    Args:
        checkpoint: gives a place to keep the state of a training by name, or None.
        track: wraps the steps for a progress bar.
    """

    def __init__(
        self, config: Config, task: Task, checkpoint: Callable[[str], Any] | None = None, track: Callable[..., Any] | None = None
    ):
        self.config, self.task, self.checkpoint, self.track = config, task, checkpoint, track
        self.method = importlib.import_module(f"papers.gpusq_vit.model_{config.framework.value}")
        self.dense = self.method.build(task.architecture, task.weights)
        self.critical = math.ceil(config.critical * task.architecture.depth)

    def prune(self, variant: Variant, seed: int, log: list[list[float]] | None = None) -> Any:
        """First stage: M_SF, which learns from the dense model with its mask fixed."""
        model = self.method.copied(self.dense)
        self.method.prune(model, variant.bits, self.config.classifier, self.config.ragged.value)
        self._train(
            model, self.dense, variant, np.ones(self.critical), seed, f"prune-{variant.first}-{seed}",
            self.config.steps_prune, self.config.rate_prune, log,
        )  # fmt: skip
        return model

    def feature_losses(self, pruned: Any) -> Float64[np.ndarray, " blocks"]:
        """How hard the feature of each critical block was to mimic, at the end of the first stage."""
        some = self.task.images.train[: 4 * self.config.calibration]
        return self.method.feature_losses(pruned, self.dense, some, self.critical)

    def quantize(
        self,
        pruned: Any,
        losses: Float64[np.ndarray, " blocks"],
        variant: Variant,
        seed: int,
        log: list[list[float]] | None = None,
    ) -> Any:
        """Second stage: M_SQ, quantised, which learns from the pruned model."""
        model = self.method.copied(pruned)
        self.method.quantize(model, variant.bits, self.task.images.train[: self.config.calibration])
        kind = variant.blocks or self.config.block_weights.value
        self._train(
            model, pruned, variant, compress.block_weights(losses, kind), seed, f"quantize-{variant.first}-{kind}-{seed}",
            self.config.steps_quantize, self.config.rate_quantize, log,
        )  # fmt: skip
        return model

    def accuracy(self, model: Any) -> float:
        """Per cent of the held-out images that are told right."""
        return 100 * float((self.method.predictions(model, self.task.images.test) == self.task.images.test_labels).mean())

    def packed_accuracy(self, compressed: Compressed) -> float:
        """That of a model which runs from the packed weights."""
        return self.accuracy(self.method.load(compressed))

    def _train(
        self, model: Any, teacher: Any, variant: Variant, blocks: np.ndarray, seed: int, name: str, steps: int, rate: float, log: Any
    ) -> None:  # fmt: skip
        config = self.config
        if not config.recover:
            return
        weights = (config.alpha, config.beta * variant.soft, config.gamma * variant.feature)
        wrong = config.fault is Fault.shuffled_teacher and not variant.labelled
        objective = self.method.loss(teacher, weights, blocks, config.temperature, variant.labelled, wrong, log)
        images = self.task.images

        def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
            rows = np.random.default_rng((config.seed, seed, step)).integers(0, len(images.train), config.batch)
            return images.train[rows], images.train_labels[rows]

        self.method.train(
            model, objective, batch_at, rate, 0.0, steps, schedule=warmup_cosine(steps, max(1, steps // 10), 0.05),
            checkpoint=self.checkpoint(name) if self.checkpoint else None, track=self.track, label=name,
        )  # fmt: skip
        model.eval()


FEATURES = "feature_losses.json"


def save_feature_losses(folder: Path, losses: Float64[np.ndarray, " blocks"]) -> None:
    """What the second stage wants to know of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FEATURES, (json.dumps({"feature_losses": losses.tolist()}) + "\n").encode())


def load_feature_losses(folder: Path, blocks: int) -> Float64[np.ndarray, " blocks"]:
    """Raises:
    UserError: the file is missing, is none, or speaks of another number of blocks.
    """
    path = folder / FEATURES
    if not path.exists():
        raise UserError(
            f"{path} is missing, and the second stage weighs its blocks by it; "
            f"run the first stage: python -m papers.gpusq_vit.tool prune {folder}"
        )
    try:
        losses = np.array(json.loads(path.read_text())["feature_losses"], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of feature losses ({error}); run the first stage again") from error
    if losses.shape != (blocks,) or not (np.isfinite(losses) & (losses >= 0)).all():
        raise UserError(f"{path} holds {losses.tolist()}; wanted {blocks} losses, one for each critical block")
    return losses
