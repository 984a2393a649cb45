"""Time of steps, side by side: within the super-network by mode, and of the sampled network alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from common import meter
from common.nas.network_torch import Network
from papers.proxyless_nas import cost, search
from papers.proxyless_nas.config import Config
from papers.proxyless_nas.data import Task
from papers.proxyless_nas.gates import Gates, sample
from papers.proxyless_nas.objective import MOMENTUM, SMOOTHING, WEIGHT_DECAY, Objective
from papers.proxyless_nas.supernet_torch import SuperNet


def steps(task: Task, config: Config) -> dict[str, float]:
    """Seconds of each step over those of a training step of the sampled network alone; means over two draws of the gates."""
    rng, space = np.random.default_rng((config.seed, 6)), task.space
    price = cost.macs(space)
    images, labels = (torch.from_numpy(each[: config.batch]) for each in task.weights)
    within = search.Search(
        SuperNet(space, 0, search.depthwise), price, Objective(price.uniform, 0.1), search.begin(space, rng), 0.0
    )
    ratios: dict[str, list[float]] = {}
    for _ in range(2):
        pair = [sample(np.zeros(len(place.candidates)), "two", rng) for place in space.places]
        gates = [Gates(own.active, tuple(range(len(place.candidates)))) for own, place in zip(pair, space.places, strict=True)]
        alone = Network(space.network(search.chosen(space, [own.active for own in pair])), 0, search.depthwise).train()
        sgd = torch.optim.SGD(alone.parameters(), 0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)

        def ordinary(alone: Network = alone, sgd: torch.optim.SGD = sgd) -> None:
            sgd.zero_grad()
            F.cross_entropy(alone(images), labels, label_smoothing=SMOOTHING).backward()
            sgd.step()

        functions = {"alone": ordinary, "weight step": lambda gates=gates: within.weight_step(images, labels, gates, 0.0)}
        for mode in ("every", "full", "full_v2", "two"):
            own = pair if mode == "two" else gates
            functions[f"architecture step, {mode}"] = lambda own=own, mode=mode: within.architecture_step(
                images, labels, own, mode
            )
        seconds = meter.median_seconds(functions, config.repeats)
        for name in functions:
            if name != "alone":
                ratios.setdefault(name, []).append(seconds[name] / seconds["alone"])
    return {name: float(np.mean(each)) for name, each in ratios.items()}
