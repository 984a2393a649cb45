"""A derived network trained from new weights and tested: what a search is judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nas.network_torch import Network
from common.training import Store, torch_loop
from papers.proxyless_nas.config import Config
from papers.proxyless_nas.data import Batches, Task, joined
from papers.proxyless_nas.objective import MOMENTUM, SMOOTHING, WARM_RATE, WEIGHT_DECAY
from papers.proxyless_nas.search import chosen, cosine, depthwise, device
from papers.proxyless_nas.state import EVERY


class Tested(NamedTuple):
    """Mean loss in nats and accuracy on the test images."""

    loss: float
    accuracy: float


def retrain(task: Task, config: Config, picks: tuple[int, ...], seed: int, store: Store | None = None) -> Tested:
    """Train the network of these candidates on the images of weights and of architecture together, and test it."""
    train = Batches(joined(task.weights, task.alphas), config.batch, (seed, 5))
    model = Network(task.space.network(chosen(task.space, picks)), seed, depthwise).to(device())
    sgd = torch.optim.SGD(model.parameters(), WARM_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    torch_loop.train(model, _smoothed, train, sgd, config.retrain, lambda step: cosine(step, config.retrain), store, every=EVERY)
    images, labels = task.test
    starts = range(0, len(labels), 256)

    def mean(of: Callable[..., Tensor]) -> float:
        return torch_loop.evaluate(model, ((images[at : at + 256], labels[at : at + 256]) for at in starts), of)

    return Tested(mean(_loss), mean(_right))


def _smoothed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=SMOOTHING)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _right(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).double().mean()
