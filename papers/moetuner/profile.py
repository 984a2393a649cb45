"""What is known of a model's routing: loads of experts, and how many tokens go from each expert to each of the next layer.

    P[l, e]       tokens that expert e of layer l processes
    R[l, a, b]    tokens that go from expert a of layer l to expert b of layer l + 1; each of the k x k pairs of a token counts

so that sum_b R[l, a, b] = k P[l, a] and sum_a R[l, a, b] = k P[l + 1, b] (paper, section on profiling).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64, UInt8

from common import UserError


@dataclass(frozen=True, eq=False)
class Trace:
    """Which experts every token chose.

    Attributes:
        chosen: of each layer and token, the likeliest expert first.
        experts: of each layer.
        length: tokens of one sequence; sequences lie one behind the other.

    Raises:
        ValueError: an expert out of range or chosen twice by one token, no tokens, or a broken sequence.
    """

    chosen: Int[np.ndarray, "layer token active"]
    experts: int
    length: int

    def __post_init__(self) -> None:
        layers, tokens, active = self.chosen.shape
        if not (layers and tokens and active and self.length > 0) or tokens % self.length:
            raise ValueError(
                f"routes of {layers} layers, {tokens} tokens and {active} choices in sequences of {self.length}; "
                "wanted at least one of each, and whole sequences"
            )
        if self.chosen.min() < 0 or self.chosen.max() >= self.experts:
            raise ValueError(
                f"routes name experts {self.chosen.min()} to {self.chosen.max()}; wanted 0 to {self.experts - 1} (experts = {self.experts})"
            )
        ordered = np.sort(self.chosen, axis=2)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            layer, token = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(axis=2))[0]
            raise ValueError(f"token {token} chose an expert of layer {layer} twice; wanted different ones")

    @property
    def layers(self) -> int:
        return self.chosen.shape[0]

    @property
    def tokens(self) -> int:
        return self.chosen.shape[1]

    @property
    def active(self) -> int:
        return self.chosen.shape[2]

    def part(self, first: int, last: int) -> Trace:
        """The sequences from ``first`` up to, not including, ``last``."""
        return Trace(self.chosen[:, first * self.length : last * self.length], self.experts, self.length)


@dataclass(frozen=True, eq=False)
class Profile:
    """P and R of a trace.

    Attributes:
        load: P.
        moved: R.
        active: k.

    Raises:
        ValueError: shapes or sums that do not fit together, or a layer without tokens.
    """

    load: Int64[np.ndarray, "layer expert"]
    moved: Int64[np.ndarray, "gap expert expert"]
    active: int

    def __post_init__(self) -> None:
        layers, experts = self.load.shape
        if self.moved.shape != (layers - 1, experts, experts):
            raise ValueError(
                f"R has shape {self.moved.shape} and P {self.load.shape}; wanted {(layers - 1, experts, experts)}, one R between two layers"
            )
        if self.load.min() < 0 or self.moved.min(initial=0) < 0:
            raise ValueError("P or R holds a negative number; wanted counts of tokens")
        if (empty := self.load.sum(axis=1) == 0).any():
            raise ValueError(f"layer {int(empty.argmax())} has no tokens; profile a text, or leave the layer out")
        for axis, load, words in ((2, self.load[:-1], "to the next"), (1, self.load[1:], "from the last")):
            wrong = self.moved.sum(axis=axis) != self.active * load
            if wrong.any():
                layer, expert = (int(each) for each in np.argwhere(wrong)[0])
                have, want = int(self.moved.sum(axis=axis)[layer, expert]), int(self.active * load[layer, expert])
                raise ValueError(
                    f"R between layers {layer} and {layer + 1} counts {have} moves {words} layer for expert {expert}, but P says "
                    f"{want} (k = {self.active} for each token); profile P and R on the same tokens"
                )

    @property
    def layers(self) -> int:
        return self.load.shape[0]

    @property
    def experts(self) -> int:
        return self.load.shape[1]


def profile(trace: Trace) -> Profile:
    """Count P and R."""
    experts, chosen = trace.experts, trace.chosen
    load = np.stack([np.bincount(each.ravel(), minlength=experts) for each in chosen])
    moved = np.zeros((trace.layers - 1, experts, experts), np.int64)
    for layer, (here, there) in enumerate(pairwise(chosen)):
        pairs = here[:, :, None] * experts + there[:, None, :]
        moved[layer] = np.bincount(pairs.ravel(), minlength=experts**2).reshape(experts, experts)
    return Profile(load.astype(np.int64), moved, trace.active)


def spread(text: UInt8[np.ndarray, " bytes"], sequences: int, length: int) -> UInt8[np.ndarray, "sequence length"]:
    """Sequences from all over a text, at even distances."""
    if sequences < 1 or not 0 < length <= len(text):
        raise ValueError(f"{sequences} sequences of {length} from a text of {len(text)} bytes; wanted at least one that fits")
    return np.stack([text[first : first + length] for first in np.linspace(0, len(text) - length, sequences).astype(int)])


def routes_torch(model: Any, text: UInt8[np.ndarray, "sequence length"], batch: int = 16) -> Trace:
    """The routes of a :class:`common.models.transformer_torch.TransformerLM` through sequences."""
    import torch

    found = []
    with torch.inference_mode():
        for first in range(0, len(text), batch):
            routes: list[Any] = []
            model(torch.from_numpy(text[first : first + batch].astype(np.int64)), routes)
            found.append(np.stack([each.chosen.numpy() for each in routes]))
    return Trace(np.concatenate(found, axis=1), model.architecture.experts, text.shape[1])


def routes_jax(model: Any, text: UInt8[np.ndarray, "sequence length"], batch: int = 16) -> Trace:
    """As :func:`routes_torch`, for the model of :mod:`common.models.transformer_jax`."""
    import jax.numpy as jnp
    from flax import nnx

    @nnx.jit
    def chosen(model: Any, rows: Any) -> Any:
        routes: list[Any] = []
        model(rows, routes)
        return jnp.stack([each.chosen for each in routes])

    parts = [text[first : first + batch] for first in range(0, len(text), batch)]
    found = [np.asarray(chosen(model, jnp.asarray(each, jnp.int32))) for each in parts]
    return Trace(np.concatenate(found, axis=1), model.architecture.experts, text.shape[1])


def read(path: str | Path, experts: int) -> Trace:
    """A user's own routes: an .npz file with ``chosen`` (layer, token, active) and ``length``, tokens of a sequence.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return Trace(file["chosen"].astype(np.int64), experts, int(file["length"]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: {error}; wanted an .npz file with arrays chosen (layer, token, active) and length") from error


def variation(load: Int[np.ndarray, "layer expert"]) -> float:
    """Deviation of the experts' loads over their mean, mean over layers."""
    return float((load.std(axis=1) / load.mean(axis=1)).mean())


def successors(moved: Int[np.ndarray, "gap expert expert"], first: int) -> float:
    """Share of the moves that go to the ``first`` likeliest successors of their expert."""
    return float(np.sort(moved, axis=2)[..., -first:].sum() / moved.sum())


def independent(profiled: Profile) -> Float[np.ndarray, "gap expert expert"]:
    """R as it would be if neighbouring layers did not depend on each other, with the same P."""
    here, there = profiled.load[:-1], profiled.load[1:]
    return profiled.active**2 * here[:, :, None] * there[:, None, :] / (profiled.active * here.sum(axis=1))[:, None, None]


def information(moved: Int[np.ndarray, "gap expert expert"]) -> float:
    """Mutual information of neighbouring layers in bits, mean over the gaps."""
    joint = moved / moved.sum(axis=(1, 2), keepdims=True)
    apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    safe = np.where(joint > 0, joint, 1.0)
    return float((joint * np.log2(safe / np.where(apart > 0, apart, 1.0))).sum(axis=(1, 2)).mean())


def shift_test(trace: Trace, times: int, rng: np.random.Generator) -> float:
    """p of "neighbouring layers route independently": how often a shift of the deeper layers' tokens along the text has as
    much mutual information.

    Layer l is shifted l times as far, so every pair of neighbours by the same. Unlike a permutation a shift leaves the order
    within each layer alone: neighbouring tokens route alike, and a test that ignored it would find dependence too easily.
    """
    found = information(profile(trace).moved)
    reached = 0
    for shift in rng.integers(trace.length, trace.tokens - trace.length, times):
        rolled = np.stack([np.roll(each, layer * int(shift), axis=0) for layer, each in enumerate(trace.chosen)])
        reached += information(profile(Trace(rolled, trace.experts, trace.length)).moved) >= found
    return (reached + 1) / (times + 1)
