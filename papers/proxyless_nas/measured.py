"""Latencies of this machine: of every candidate at every shape, and of whole networks to hold their sums against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import meter
from common.locks import outputs
from common.nas import LatencyTable
from common.nas.network import Layer
from common.nas.network_torch import Network, build
from common.threads import torch_threads
from papers.proxyless_nas import cost, search
from papers.proxyless_nas.config import Config
from papers.proxyless_nas.space import ZERO, Space


def cpu_table(
    space: Space, config: Config, file: Path | None = None, track: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> LatencyTable:
    """Milliseconds of a batch through each layer, one thread, running statistics, no gradients; a file keeps them."""
    what = f"PyTorch, 1 thread, batch {config.table_batch}"
    functions = dict(_functions(space, config.table_batch))
    with torch_threads(1), torch.no_grad():
        return LatencyTable.measured(functions, what, file, repeats=config.repeats, track=track)


def file_of(config: Config) -> Path:
    """Where the table of this machine is kept."""
    return outputs() / "proxyless_nas" / f"latency-{config.where.value}-{config.table_batch}.yaml"


def _functions(space: Space, batch: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    first, *_, last = space.at()
    ends = math.ceil(last[1] / last[0].stride)
    sizes = (space.size, first[1], ends, ends)
    for (key, layer), size in zip(cost.fixed_layers(space), sizes, strict=True):
        if layer is None:
            head, x = torch.nn.Linear(space.last.outputs, space.classes), _images(batch, size, space.last.outputs)
            yield key, lambda head=head, x=x: head(x.mean((2, 3)))
        else:
            yield key, _function(layer, batch, size, space.epsilon)
    for place, size in space.at():
        for candidate in place.candidates:
            if candidate != ZERO:
                layer = place.layer(candidate)
                assert layer is not None
                yield place.key(size, size, candidate), _function(layer, batch, size, space.epsilon)


def _function(layer: Layer, batch: int, size: int, epsilon: float) -> Callable[[], Tensor]:
    module, x = build(layer, epsilon).eval(), _images(batch, size, layer.inputs)
    return lambda: module(x)


def _images(batch: int, size: int, channels: int) -> Tensor:
    """Channels last in memory, as they are inside a network."""
    return torch.rand(batch, size, size, channels).permute(0, 3, 1, 2)


def predictions(space: Space, config: Config, table: LatencyTable) -> dict[str, np.ndarray]:
    """Milliseconds of random networks, by the sum over the table and measured whole."""
    price = cost.latency(space, table)
    if not config.table_sees:
        price = cost.Cost(price.rest, tuple(np.full(len(own), own.mean()) for own in price.of), price.unit)
    rng = np.random.default_rng((config.seed, 5))
    picks = [search.draw_uniformly(space, rng) for _ in range(config.networks)]
    images = torch.rand(config.table_batch, space.size, space.size, space.stem.inputs)
    with torch_threads(1), torch.no_grad():
        models = {i: Network(space.network(search.chosen(space, own))).eval() for i, own in enumerate(picks)}
        functions = {str(i): lambda model=model: model(images) for i, model in models.items()}
        seconds = meter.median_seconds(functions, config.repeats, least=2e-3)
    measured = np.array([1e3 * seconds[str(i)] for i in range(len(picks))])
    return {"predicted": np.array([price.total(own) for own in picks]), "measured": measured}


def correlation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Pearson's; a constant prediction, which has none, counts as 0."""
    if np.ptp(predicted) <= 1e-12 * np.abs(predicted).max():
        return 0.0
    return float(np.corrcoef(predicted, measured)[0, 1])
