"""What travels: the parameters of a decoder as one flat bucket for each block, in the order in which MeZO visits them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.architecture import Transformer
from common.models.weights import shapes

UNDECAYED = ("bias", "norm", "ln")
"""Parts of a full name that exempt from weight decay, as in the authors' code (there: bias, layer_norm, layernorm, ln)."""


@dataclass(frozen=True)
class Parameter:
    """One tensor in its bucket: ``start`` counts elements of the bucket, ``index`` all tensors of the model in their order."""

    name: str
    shape: tuple[int, ...]
    index: int
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """By the full name: inside a lone norm the tensor is called ``weight``, and would be decayed."""
        return not any(part in self.name for part in UNDECAYED)


@dataclass(frozen=True)
class Unit:
    """What is computed, and for blocks moved, as one: ``prefix`` is cut off a name to get the name within its module."""

    name: str
    prefix: str
    parameters: tuple[Parameter, ...]

    @property
    def count(self) -> int:
        return sum(each.count for each in self.parameters)

    def views(self, bucket: Any) -> list[tuple[Parameter, Any]]:
        """The tensors of a flat array, none of them copied (JAX arrays: copied when traced, if at all)."""
        return [(each, bucket[each.start : each.start + each.count].reshape(each.shape)) for each in self.parameters]

    def fill(self, bucket: np.ndarray, weights: Mapping[str, np.ndarray]) -> None:
        """Copy weights, named in full, into a bucket of any float type."""
        for each, view in self.views(bucket):
            view[...] = weights[each.name]


@dataclass(frozen=True)
class Units:
    """The whole model in execution order: the embedding (and positions), the blocks, the tail (last norm and head)."""

    first: Unit
    blocks: tuple[Unit, ...]
    tail: Unit
    tied: bool

    def __iter__(self) -> Iterator[Unit]:
        return iter((self.first, *self.blocks, self.tail))

    @property
    def resident(self) -> int:
        """Elements that stay on the device."""
        return self.first.count + self.tail.count


def units(architecture: Transformer) -> Units:
    """Cut a decoder into units; the numbers of the parameters follow ``named_parameters`` of the model."""
    wanted = list(shapes(architecture).items())

    def unit(name: str, prefix: str, belongs: Iterable[str]) -> Unit:
        chosen, parameters, start = tuple(belongs), [], 0
        for index, (full, shape) in enumerate(wanted):
            if full.startswith(chosen):
                parameters.append(Parameter(full, shape, index, start))
                start += math.prod(shape)
        return Unit(name, prefix, tuple(parameters))

    blocks = tuple(unit(f"block {i}", f"blocks.{i}.", [f"blocks.{i}."]) for i in range(architecture.depth))
    return Units(unit("first", "", ["embedding.", "positions."]), blocks, unit("tail", "", ["norm.", "head."]), architecture.tied)
