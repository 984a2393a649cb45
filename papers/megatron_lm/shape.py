"""The GPT of the paper: its parameters by name and shape, what it costs, and how tensor parallelism cuts each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PAD = 128
"""The vocabulary is padded to a multiple of PAD * t rows, so that every shard is whole and wide enough for matrix units."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """GPT-2: learned positions, pre-norm blocks with biases, GeLU of four times the width, output tied to the embedding.

    Attributes:
        vocabulary: V, tokens that exist (padding is added where they are split).
        width: h.
        depth: l, layers.
        heads: of attention, width / heads features each.
        context: s, tokens of a sequence.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    context: int

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "depth", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, but {self.heads} does not divide {self.width}")

    def padded(self, tensor: int) -> int:
        """Rows of the embedding when ``tensor`` ranks share it."""
        return math.ceil(self.vocabulary / (PAD * tensor)) * PAD * tensor

    def parameters(self) -> float:
        """P = 12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h)). Source: paper, section 5, equation (2).

        The final layer norm's 2 h are left out, as they are there.
        """
        l, h = self.depth, self.width
        return 12 * l * h**2 * (1 + 13 / (12 * h) + (self.vocabulary + self.context) / (12 * l * h))

    def flops(self, batch: int) -> float:
        """F = 96 B s l h^2 (1 + s / (6 h) + V / (16 l h)) of one iteration with all activations recomputed.

        Source: paper, section 5, equation (3), and its appendix.
        """
        l, h, s = self.depth, self.width, self.context
        return 96 * batch * s * l * h**2 * (1 + s / (6 * h) + self.vocabulary / (16 * l * h))

    def parts(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name; linear weights are (out, in), queries, keys and values one of (3, out, in)."""
        h = self.width
        found: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocabulary, h), "positions.weight": (self.context, h)}
        for block in (f"blocks.{layer}" for layer in range(self.depth)):
            for norm in ("attention_norm", "feed_forward_norm"):
                found[f"{block}.{norm}.weight"], found[f"{block}.{norm}.bias"] = (h,), (h,)
            found[f"{block}.attention.qkv.weight"], found[f"{block}.attention.qkv.bias"] = (3, h, h), (3, h)
            found[f"{block}.attention.output.weight"], found[f"{block}.attention.output.bias"] = (h, h), (h,)
            found[f"{block}.feed_forward.up.weight"], found[f"{block}.feed_forward.up.bias"] = (4 * h, h), (4 * h,)
            found[f"{block}.feed_forward.down.weight"], found[f"{block}.feed_forward.down.bias"] = (h, 4 * h), (h,)
        found["norm.weight"], found["norm.bias"] = (h,), (h,)
        return found


_AXES = {
    "embedding.weight": 0,  # by tokens
    "attention.qkv.weight": 1, "attention.qkv.bias": 1,  # columns: by heads
    "attention.output.weight": 1,  # rows
    "feed_forward.up.weight": 0, "feed_forward.up.bias": 0,  # columns
    "feed_forward.down.weight": 1,  # rows
}  # fmt: skip


def axis_of(name: str) -> int | None:
    """The axis along which tensor parallelism cuts a parameter; None: every tensor rank holds all of it."""
    parts = name.split(".")
    return _AXES.get(".".join(parts[2:] if parts[0] == "blocks" else parts))


def decays(name: str) -> bool:
    """Whether AdamW's decay applies to a parameter: matrices only, no biases and no norms."""
    return name.endswith("weight") and "norm" not in name


def cut(name: str, whole: np.ndarray, tensor: int, rank: int) -> np.ndarray:
    """The part of a whole parameter (or of its optimiser's state) that one of ``tensor`` ranks holds, padding included."""
    axis = axis_of(name)
    if axis is None:
        return whole
    if name == "embedding.weight":
        rows = math.ceil(whole.shape[0] / (PAD * tensor)) * PAD * tensor
        whole = np.pad(whole, ((0, rows - whole.shape[0]), (0, 0)))
    return np.split(whole, tensor, axis)[rank]


def join(name: str, shards: list[np.ndarray], vocabulary: int) -> np.ndarray:
    """The whole parameter from the shards of all tensor ranks, without padding: the inverse of :func:`cut`."""
    axis = axis_of(name)
    whole = shards[0] if axis is None else np.concatenate(shards, axis)
    return whole[:vocabulary] if name == "embedding.weight" else whole


def initial_weights(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Float64 weights: normal of deviation 0.02, projections onto the residual stream over sqrt(2 l); biases a tenth of that.

    Biases are not zero, so that one which is added twice, or by one rank of two, is seen. Source of the deviations: Radford et
    al. 2019, section 2.3.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, size: tuple[int, ...]) -> np.ndarray:
        noise = rng.normal(0.0, 0.02, size)
        if "norm" in name:
            return noise + name.endswith("weight")
        if name.endswith("bias"):
            return noise / 10
        return noise / math.sqrt(2 * shape.depth) if name.endswith(("output.weight", "down.weight")) else noise

    return {name: draw(name, size) for name, size in shape.parts().items()}
