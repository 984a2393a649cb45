"""Fine-tuning at rank 4: the digits model of the zoo learns digits that are seen otherwise (PyTorch).

Four tasks stand for the eight of GLUE: the digits upside down, mirrored, transposed and with colours inverted. As there, every
matrix of attention and feed-forward is projected by GaLore, has an adapter under LoRA, or is trained whole; all else (head,
norms, biases) is trained whole by all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from common import zoo
from common.data import digits as images
from common.runner import Run
from common.training import torch_loop, warmup_cosine
from papers.galore import baselines
from papers.galore.config import Config
from papers.galore.memory import make

TASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upside down": lambda x: x[:, ::-1],
    "mirrored": lambda x: x[:, :, ::-1],
    "transposed": lambda x: x.swapaxes(1, 2),
    "inverted": lambda x: 1 - x,
}


def accuracies(config: Config, run: Run) -> dict[str, float]:
    """Percent of the held-out digits told right, mean over the tasks: {method: accuracy}; "before" is the model as it comes.

    Each method takes the learning rate that tells most of a fifth of the training images right, which it is not trained on.
    """
    trained, data = zoo.load("digits_vit.v1"), images.digits()
    run.used("digits_vit.v1", trained.source, trained.sha256)
    run.used("digits", data.source, data.sha256)
    found: dict[str, list[float]] = {}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for task in run.track(list(TASKS)[: config.tasks], "fine-tuning"):
        images_seen, labels = np.ascontiguousarray(TASKS[task](data.train)), data.train_labels
        validation = np.arange(len(labels)) % 5 == 0
        train, held_back = (images_seen[~validation], labels[~validation]), (images_seen[validation], labels[validation])
        test = np.ascontiguousarray(TASKS[task](data.test)), data.test_labels
        found.setdefault("before", []).append(100 * _accuracy(trained.torch().eval(), test))
        # What is not compared is left out where only the comparison is wanted.
        for method in ("galore", "lora") if run.only else ("full", "galore", "lora"):
            models = {rate: _tuned(method, trained.torch(), train, rate, config) for rate in config.tune_rates}
            rate = max(models, key=lambda rate: _accuracy(models[rate], held_back))
            found.setdefault(method, []).append(100 * _accuracy(models[rate], test))
            table.setdefault(task, {})[method] = {"accuracy": found[method][-1], "rate": rate}
    run.keep("fine_tuning", table)
    return {method: float(np.mean(values)) for method, values in found.items()}


def _tuned(method: str, model: nn.Module, train: tuple[np.ndarray, np.ndarray], rate: float, config: Config) -> nn.Module:
    generator = torch.Generator().manual_seed(config.seed)
    if method == "lora":
        baselines.swap(model, lambda layer: baselines.Lora(layer, config.tune_rank, config.tune_lora_scale, generator))
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    # Of a projected matrix the step is alpha times the rate.
    projection = {"rank": config.tune_rank, "gap": config.tune_gap, "scale": config.tune_scale if config.mechanism else 0.0}
    optimizer = make(method, parameters, projection, lr=rate)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.random.default_rng((config.seed, step)).choice(len(train[0]), config.tune_batch, replace=False)
        return train[0][chosen], train[1][chosen]

    schedule = warmup_cosine(config.tune_steps, max(config.tune_steps // 10, 1), 0.1)
    torch_loop.train(model, _loss, batch_at, optimizer, config.tune_steps, schedule)
    return model.eval()


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def _accuracy(model: nn.Module, test: tuple[np.ndarray, np.ndarray]) -> float:
    return float((model(torch.from_numpy(test[0])).argmax(1).numpy() == test[1]).mean())
