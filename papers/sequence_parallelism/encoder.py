"""The BERT-like encoder that is trained, as data: its shape, its weights, and which part of them a rank has.

Blocks are x = norm(x + attention(x)); x = norm(x + down(gelu(up(x)))) (Devlin et al. 2019). One head tells masked tokens, one
on the first token tells whether two segments stand in their order. Keys have no bias: the softmax does not see it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]

_COLUMN = re.compile(r"\.(query|key|value|up)\.(weight|bias)$")
_ROW = re.compile(r"\.(output|down)\.weight$")
COLUMNS = re.compile(r"\.(key|value)_columns$")
"""Weights of which each rank of the sequence has a part of its own."""


@dataclass(frozen=True)
class Shape:
    """
    Attributes:
        width: features of a token.
        depth: blocks.
        heads: of width / heads features.
        length: tokens of the longest sequence, filling included.
        vocabulary: tokens that can be told apart.
        rows: of Linformer's projections; 0 is attention over all keys.
    """

    width: int
    depth: int
    heads: int
    length: int
    vocabulary: int = 260
    rows: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, but {self.heads} does not divide {self.width}")


@dataclass(frozen=True)
class Place:
    """Where a rank stands in the grid: (its number, how many) along each axis."""

    tensor: tuple[int, int] = (0, 1)
    sequence: tuple[int, int] = (0, 1)
    stage: tuple[int, int] = (0, 1)

    @property
    def first(self) -> bool:
        return self.stage[0] == 0

    @property
    def last(self) -> bool:
        return self.stage[0] == self.stage[1] - 1

    def layers(self, depth: int) -> range:
        """The blocks of this stage."""
        number, stages = self.stage
        if depth % stages:
            raise ValueError(f"{stages} stages cannot share {depth} blocks evenly; wanted a divisor of the blocks")
        return range(number * depth // stages, (number + 1) * depth // stages)


def check_tensor(shape: Shape, size: int) -> None:
    """Refuse what tensor parallelism cannot split."""
    if shape.heads % size:
        raise ValueError(
            f"tensor parallelism gives each rank whole heads: {size} ranks cannot share {shape.heads} heads; "
            "wanted a divisor of the heads, or sequence parallelism, which does not split them"
        )


def initial_weights(shape: Shape, seed: int) -> Weights:
    """Float64 weights of the whole model with torch's names and layouts: matrices are normal with deviation 0.02, those that
    end on the residual stream divided by sqrt(2 depth); Linformer's have deviation 1 / sqrt(rows) (Wang et al. 2020)."""
    rng = np.random.default_rng(seed)
    found: Weights = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        deviation = 0.02 / math.sqrt(2 * shape.depth if name.endswith(("output", "down")) else 1)
        found[f"{name}.weight"] = rng.normal(0, deviation, (outputs, inputs))
        if bias:
            found[f"{name}.bias"] = np.zeros(outputs)

    def norm(name: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = np.ones(shape.width), np.zeros(shape.width)

    for name, count in (("tokens", shape.vocabulary), ("positions", shape.length), ("segments", 2)):
        found[f"{name}.weight"] = rng.normal(0, 0.02, (count, shape.width))
    norm("norm")
    for block in (f"blocks.{layer}" for layer in range(shape.depth)):
        for part in ("query", "key", "value", "output"):
            linear(f"{block}.attention.{part}", shape.width, shape.width, bias=part != "key")
        for part in ("key_columns", "value_columns") if shape.rows else ():
            found[f"{block}.attention.{part}"] = rng.normal(0, shape.rows**-0.5, (shape.rows, shape.length))
        norm(f"{block}.attention_norm")
        linear(f"{block}.feed_forward.up", shape.width, 4 * shape.width)
        linear(f"{block}.feed_forward.down", 4 * shape.width, shape.width)
        norm(f"{block}.feed_forward_norm")
    linear("head", shape.width, shape.vocabulary)
    linear("pooler", shape.width, shape.width)
    linear("order", shape.width, 2)
    return found


def part(weights: Weights, shape: Shape, place: Place) -> Weights:
    """What the rank at this place has of the whole model's weights."""
    check_tensor(shape, place.tensor[1])
    return {name: _slice(name, array, place) for name, array in weights.items() if _here(name, shape, place)}


def _here(name: str, shape: Shape, place: Place) -> bool:
    top = name.split(".")[0]
    if top == "blocks":
        return int(name.split(".")[1]) in place.layers(shape.depth)
    return place.last if top in ("head", "pooler", "order") else place.first


def _slice(name: str, array: np.ndarray, place: Place) -> np.ndarray:
    (rank, size), axis = place.tensor, 0
    if COLUMNS.search(name):
        (rank, size), axis = place.sequence, 1
    elif _ROW.search(name):
        axis = 1
    elif not _COLUMN.search(name):
        return array
    return np.split(array, size, axis)[rank]
