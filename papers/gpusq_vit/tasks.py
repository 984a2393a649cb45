"""What is compressed: a trained dense vision transformer and its images."""

from __future__ import annotations

from typing import Any

import numpy as np

from common import UserError, zoo
from common.architecture import VisionTransformer
from common.data.digits import digits
from common.data.photo_patches import photo_patches
from common.models.weights import initial_weights
from common.runner import Run
from papers.gpusq_vit import config as options
from papers.gpusq_vit.config import Config
from papers.gpusq_vit.stages import Task

PHOTOGRAPHS = VisionTransformer(image=32, patch=4, classes=8, width=96, depth=6, heads=4, hidden=384)
"""65 tokens."""
LARGE = 100_000
"""Image passes that are no work for a CPU, times the tokens of DeiT."""


def task(config: Config, run: Run) -> Task:
    """The dense model, from the zoo or trained here, and its images."""
    match config.task:
        case options.Task.digits:
            trained, images = zoo.load("digits_vit.v1"), digits()
            run.used("digits_vit.v1", trained.source, trained.sha256)
            run.used("digits", images.source, images.sha256)
            assert isinstance(trained.architecture, VisionTransformer)
            return Task(trained.architecture, trained.weights, images)
        case options.Task.photographs:
            images = photo_patches()
            run.used("photographs", images.source, images.sha256)
            return Task(PHOTOGRAPHS, _trained(config, run, images), images)
        case options.Task.imagenet:
            run.require_gpu("compressing DeiT-B on ImageNet")
            raise UserError(
                "ImageNet and the weights of DeiT-B are not part of this repository; build a stages.Task from your own copies "
                "(shapes.DEIT has the architecture) and hand it to stages.Pipeline"
            )


def _trained(config: Config, run: Run, images: Any) -> dict[str, np.ndarray]:
    """A dense model trained on the photographs, in PyTorch."""
    from common.models.vision_torch import ViT, classification_loss
    from common.models.weights import from_torch, to_torch
    from common.training import torch_loop, warmup_cosine

    model = ViT(PHOTOGRAPHS)
    to_torch(model, initial_weights(PHOTOGRAPHS, config.seed))

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((config.seed, step))
        rows = rng.integers(0, len(images.train), config.batch)
        mirrored = np.where(rng.random((config.batch, 1, 1, 1)) < 0.5, images.train[rows][:, :, ::-1], images.train[rows])
        return mirrored, images.train_labels[rows]

    torch_loop.train(
        model, classification_loss, batch_at, torch_loop.adamw(model, config.rate_dense, 0.1), config.steps_dense,
        schedule=warmup_cosine(config.steps_dense, max(1, config.steps_dense // 20), 0.01),
        checkpoint=run.checkpoint("dense"), track=run.track, label="training the dense model",
    )  # fmt: skip
    return from_torch(model)
