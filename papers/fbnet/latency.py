"""Tables of latencies: of every block at its place, measured on this CPU or computed for another device.

Blocks that are the same in shape share a key, so that they are timed once. The table of a space is an array (layer, candidate)
beside the latency of what is not searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from common import hardware
from common.nas import Convolution, LatencyTable
from common.nas.network import Layer
from common.ops import readable
from common.threads import torch_threads
from papers.fbnet.space import CODES, Space


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a space on one device.

    Attributes:
        blocks: of every candidate; an identity costs nothing.
        rest: of the first and last convolution and the classifier.
    """

    name: str
    blocks: Float64[np.ndarray, "layer candidate"]
    rest: float

    def of(self, codes: Sequence[str]) -> float:
        """LAT(a) = rest + sum_l LAT(b_l)."""
        return self.rest + float(sum(row[CODES.index(code)] for row, code in zip(self.blocks, codes, strict=True)))

    def expected(self, probabilities: Float64[np.ndarray, "layer candidate"]) -> float:
        """The mean of LAT over architectures drawn with these probabilities; exact, as LAT is a sum."""
        return self.rest + float((probabilities * self.blocks).sum())

    def check(self) -> None:
        """Raises ValueError if some architecture takes 1 ms or less."""
        check_milliseconds(self.rest + float(self.blocks.min(1).sum()), f"the fastest architecture of the table {self.name!r}")


def check_milliseconds(latency: Any, what: str = "the latency") -> None:
    """The loss has a power of log(LAT), which wants LAT > 1: milliseconds, and enough of them."""
    if not (isinstance(latency, (int, float)) or readable(latency)):
        return
    value = float(latency.detach() if hasattr(latency, "detach") else latency)
    if not value > 1:
        raise ValueError(
            f"{what} is {value:g}, and its logarithm is not above 0; wanted milliseconds above 1: convert a table in "
            "seconds, or take the latency of a larger batch"
        )


def costs(space: Space, table: Mapping[str, float], name: str) -> Costs:
    """The costs of a space from a table by key.

    Raises:
        KeyError: the table lacks a block; names its key.
    """
    blocks = [
        [table[key(layer, place.size)] if layer else 0.0 for layer in row]
        for place, row in zip(space.places, space.candidates(), strict=True)
    ]
    rest = sum(table[each] for each, _, _ in _rest(space))
    return Costs(name, np.array(blocks, np.float64), rest)


def key(layer: Layer, size: int) -> str:
    """What the latency of a layer depends on, as text."""
    ends = f"{layer.inputs}-{layer.outputs} k{layer.kernel} s{layer.stride} g{layer.groups}"
    if isinstance(layer, Convolution):
        return f"conv {ends} at {size}"
    return f"block {ends} e{layer.expand:g}{'' if layer.expands else ' short'} at {size}"


def measured(
    space: Space, batch: int, file: Path | None = None, track: Callable[[Iterable[Any]], Iterable[Any]] = iter, repeats: int = 9
) -> LatencyTable:
    """Time every block of a space here: PyTorch, one thread, inference, a batch of images; kept in a file of this machine."""
    import torch

    from papers.fbnet.model_torch import build

    def timed(module: Any, shape: tuple[int, ...]) -> Callable[[], object]:
        x = torch.rand(shape).contiguous(memory_format=torch.channels_last)

        def call() -> object:
            with torch.inference_mode():
                return module(x)

        return call

    functions = {
        name: timed(build(layer).eval(), (batch, layer.inputs, size, size)) for name, (layer, size) in _layers(space).items()
    }
    last = _image(space)
    functions[_head_key(space)] = timed(_head(space), (batch, space.last, last, last))
    with torch_threads(1):
        return LatencyTable.measured(functions, f"torch, 1 thread, batch {batch}", file, repeats=repeats, track=track)


def roofline(space: Space, device: str, dtype: str, width: int, batch: int) -> LatencyTable:
    """Milliseconds on a device whose every convolution takes the longer of its arithmetic and its traffic at the peak.

    Args:
        device: key of :func:`common.hardware.device`.
        dtype: number format of the arithmetic. width: its bytes.
        batch: images; weights are read once for all.

    A convolution reads its input and weights and writes its output; norms and activations are merged into it.
    """
    chip = hardware.device(device)

    def one(part: Convolution, height: int) -> float:
        count, out = part.count(height, height), math.ceil(height / part.stride)
        numbers = batch * (part.inputs * height**2 + part.outputs * out**2) + count.parameters
        return 1e3 * hardware.roofline(chip, 2 * count.macs * batch, width * numbers, dtype)

    def whole(layer: Layer, size: int) -> float:
        if isinstance(layer, Convolution):
            return one(layer, size)
        total = 0.0
        for _, part in layer.parts():
            total += one(part, size)
            size = math.ceil(size / part.stride)
        return total

    found = {name: whole(layer, size) for name, (layer, size) in _layers(space).items()}
    head = Convolution(inputs=space.last, outputs=space.classes, activation="none")
    found[_head_key(space)] = one(head, 1)
    return LatencyTable(found, f"roofline of {chip.name}, {dtype}, batch {batch}")


def permuted(table: LatencyTable, seed: int) -> LatencyTable:
    """The same latencies at the wrong keys: a control."""
    values = np.random.default_rng(seed).permutation(list(table.values()))
    return LatencyTable(dict(zip(table, map(float, values), strict=True)), f"permuted {table.source}")


def _layers(space: Space) -> dict[str, tuple[Layer, int]]:
    """Every layer that is timed, with the size of its input, by key; the classifier aside."""
    found: dict[str, tuple[Layer, int]] = {}
    for name, layer, size in _rest(space):
        if layer:
            found[name] = layer, size
    for place, row in zip(space.places, space.candidates(), strict=True):
        found |= {key(layer, place.size): (layer, place.size) for layer in row if layer}
    return found


def _rest(space: Space) -> list[tuple[str, Convolution | None, int]]:
    """Key, layer and size of its input for all that is not searched; the classifier, with the mean before it, is no layer."""
    first, final, size = space.first(), space.final(), _image(space)
    return [(key(first, space.size), first, space.size), (key(final, size), final, size), (_head_key(space), None, size)]


def _head_key(space: Space) -> str:
    return f"classifier {space.last}-{space.classes} at {_image(space)}"


def _image(space: Space) -> int:
    """The size of the image behind the last layer that chooses."""
    place = space.places[-1]
    return math.ceil(place.size / place.stride)


def _head(space: Space) -> Any:
    import torch

    linear = torch.nn.Linear(space.last, space.classes)
    return lambda x: linear(x.mean((2, 3)))
