"""An architecture trained from scratch, and its accuracy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.training import torch_loop, warmup_cosine
from papers.fbnet.config import Config
from papers.fbnet.data import Part, Parts
from papers.fbnet.latency import Costs
from papers.fbnet.model_torch import child
from papers.fbnet.sample import Codes
from papers.fbnet.space import Space


class Trained(NamedTuple):
    """A trained architecture.

    Attributes:
        score: cross-entropy on the images of the architecture times the power of log latency: what the search descends, and by
            which one net is chosen.
        accuracy: on test images, which nothing was chosen by. loss: cross-entropy there.
        latency: milliseconds by the table.
        macs: multiply-adds of one image.
    """

    codes: Codes
    score: float
    accuracy: float
    loss: float
    latency: float
    macs: int


def train(space: Space, codes: Codes, parts: Parts, costs: Costs, config: Config, seed: int) -> Trained:
    """SGD with momentum and a cosine, from weights drawn with the seed; source of the recipe: the paper, section 4.1."""
    net = space.net(codes)
    model = child(net, seed)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.SGD(model.parameters(), config.rate, momentum=0.9, weight_decay=config.child_decay, fused=True)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        return parts.weights.batch(rng.integers(len(parts.weights), size=config.batch))

    steps = config.child_steps
    torch_loop.train(model, cross_entropy, batch_at, optimizer, steps, warmup_cosine(steps, 0, 0.0))
    latency = costs.of(codes)
    loss, _ = evaluate(model, parts.architecture)
    test_loss, accuracy = evaluate(model, parts.test)
    score = loss * config.alpha * np.log(latency) ** config.beta
    return Trained(codes, float(score), accuracy, test_loss, latency, net.count(space.size, space.size).macs)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, batch: int = 256) -> tuple[float, float]:
    """(mean cross-entropy, share of images that are right)."""
    model.eval()
    losses, right = 0.0, 0
    for start in range(0, len(part), batch):
        images, labels = (torch.from_numpy(each[start : start + batch]) for each in (part.images, part.labels))
        logits = model(images)
        losses += float(F.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
    return losses / len(part), right / len(part)
