"""What the super-net costs beside its parts, and the kernel beside the library: timings on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common import meter
from common.allocations import Saved
from common.threads import torch_threads
from papers.fbnet.config import Config
from papers.fbnet.kernel import group_pointwise_shuffle
from papers.fbnet.kernel.cases import CASES, shuffled
from papers.fbnet.latency import Costs
from papers.fbnet.model_torch import StochasticSuperNet, child, gumbel_softmax
from papers.fbnet.sample import sample, uniform
from papers.fbnet.space import CODES, Space

PATH = ("3_6", "5_3")
"""Blocks of the path and of the net alone that the super-net is compared with, in turns."""


def _inputs(space: Space, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, space.size, space.size, space.channels)).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(rng.integers(space.classes, size=batch))


def _steps(space: Space, batch: int) -> dict[str, tuple[Any, Callable[[], torch.Tensor]]]:
    """Model and loss of a step of the super-net, of one of its paths, and of that path as a net alone."""
    images, labels = _inputs(space, batch)
    net = StochasticSuperNet(space).train()
    codes = tuple(PATH[layer % len(PATH)] for layer in range(len(space.places)))
    alone = child(space.net(codes)).train()
    masks = gumbel_softmax(net.theta, 1.0, generator=torch.Generator().manual_seed(0)).detach()
    return {
        "super-net": (net, lambda: F.cross_entropy(net(images, masks), labels)),
        "one path": (net, lambda: F.cross_entropy(net.forward_path(images, codes), labels)),
        "net alone": (alone, lambda: F.cross_entropy(alone(images), labels)),
    }


def saved_bytes(space: Space, batch: int) -> dict[str, int]:
    """What autograd keeps for the backward pass of each step."""
    found = {}
    for name, (model, loss) in _steps(space, batch).items():
        with Saved(*model.parameters()) as saved:
            loss()
        found[name] = saved.bytes
    return found


def step_seconds(space: Space, batch: int, repeats: int) -> dict[str, float]:
    """Forward and backward pass of each step, one thread."""

    def call(model: Any, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            loss().backward()

        return step

    with torch_threads(1):
        return meter.median_seconds({name: call(*each) for name, each in _steps(space, batch).items()}, repeats, least=0.05)


def forward_over_parts(space: Space, batch: int, repeats: int) -> float:
    """The forward pass of the super-net in training over the sum of its blocks', each run alone on its own input."""
    images, _ = _inputs(space, batch)
    net = StochasticSuperNet(space).train()
    masks = torch.full(net.theta.shape, 1 / len(CODES))
    parts: dict[str, Callable[[], object]] = {}

    def alone(module: Any, channels: int, size: int) -> Callable[[], object]:
        x = torch.rand(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
        return lambda: module(x)

    first, last = space.first(), space.places[-1]
    parts["first"] = alone(net.first, first.inputs, space.size)
    blocks: Any
    for number, (place, blocks) in enumerate(zip(space.places, net.layers, strict=True)):
        for code, block in zip(CODES, blocks, strict=True):
            if not isinstance(block, torch.nn.Identity):
                parts[f"{number} {code}"] = alone(block, place.inputs, place.size)
    end = math.ceil(last.size / last.stride)
    parts["final"] = alone(net.final, last.outputs, end)
    with torch_threads(1), torch.no_grad():
        seconds = meter.median_seconds({"whole": lambda: net(images, masks), **parts}, repeats, warmup=2, least=0.01)
    return seconds.pop("whole") / sum(seconds.values())


def kernel_speeds(count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Times as fast as the library's grouped convolution with a shuffle behind it, the better of both layouts, by shape."""
    found = {}
    for case in [each for each in CASES["group_pointwise_shuffle"] if each.large][-count:]:
        given = {name: torch.from_numpy(each).float() for name, each in case.make(np.random.default_rng(0)).items()}
        x, weight = given["x"], given["weight"]
        last, first = x.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            functions = {
                "fused": lambda x=x, weight=weight: group_pointwise_shuffle(x, weight),
                "channels last": lambda x=last, weight=weight: shuffled(x, weight),
                "channels first": lambda x=first, weight=weight: shuffled(x, weight),
            }
            seconds = meter.median_seconds(functions, repeats, warmup=3, least=0.01)
        found[case.id] = seconds
    return found


def net_seconds(space: Space, costs: Costs, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, measured) milliseconds of random nets, as the table is measured: inference, one thread, a batch."""
    nets = sample(uniform(len(space.places)), config.lut_nets, np.random.default_rng(config.seed))
    images = torch.rand(config.lut_batch, space.size, space.size, space.channels)

    def call(codes: tuple[str, ...]) -> Callable[[], object]:
        model = child(space.net(codes)).eval()

        def forward() -> object:
            with torch.inference_mode():
                return model(images)

        return forward

    with torch_threads(1):
        functions = {" ".join(each.codes): call(each.codes) for each in nets}
        seconds = meter.median_seconds(functions, config.repeats, warmup=2, least=5e-3)
    return np.array([costs.of(each.codes) for each in nets]), 1e3 * np.array(list(seconds.values()))
