"""What both frameworks' super-nets begin from: weights drawn once, and Gumbel noise."""

from __future__ import annotations

import numpy as np

from common.nas import ConvNet
from common.nas.network import Layer
from papers.fbnet.space import CODES, Space


def initial_weights(space: Space, seed: int) -> dict[str, np.ndarray]:
    """Float64 weights of a super-net, the same in both frameworks, by torch's names; logits are 0, so all blocks are as likely.

    Every block is drawn as in :meth:`common.nas.ConvNet.initial_weights`.
    """
    blocks: dict[str, Layer] = {"first": space.first(), "final": space.final()}
    blocks |= {f"layers.{l}.{i}": b for l, layer in enumerate(space.candidates()) for i, b in enumerate(layer) if b}
    seeds = np.random.SeedSequence(seed).generate_state(len(blocks) + 1)
    found: dict[str, np.ndarray] = {"theta": np.zeros((len(space.places), len(CODES)))}
    for (name, layer), each in zip(blocks.items(), seeds, strict=False):
        drawn = ConvNet(layers=(layer,), classes=1).initial_weights(int(each))
        found |= {f"{name}.{rest.removeprefix('layers.0.')}": a for rest, a in drawn.items() if rest.startswith("layers.0.")}
    head = np.random.default_rng(int(seeds[-1])).normal(0.0, 0.01, (space.classes, space.last))
    return found | {"head.weight": head, "head.bias": np.zeros(space.classes)}


def gumbel(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """g = -log(-log U), one for each entry."""
    return rng.gumbel(size=shape)


def tau_at(epoch: int, start: float, decay: float) -> float:
    """The temperature of an epoch, counted from 0: start exp(-decay epoch)."""
    return float(start * np.exp(-decay * epoch))


def check_tau(tau: float | int) -> None:
    if not tau > 0:
        raise ValueError(f"the temperature is {tau}; wanted a number above 0, for the hard limit take a small one")
