"""Binary gates of one place: how they are drawn, and what is done to architecture parameters outside of the networks.

All of it is NumPy on a handful of numbers, the same for both frameworks; the gradient through the gates is in ``mixed_torch``
and ``mixed_jax``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MODES = ("path", "every", "full", "full_v2", "two")
"""How a place runs: the active candidate alone; all of them, kept by automatic differentiation; all, of the inactive only the
outputs kept; the active one, the inactive recomputed one by one in the backward pass; two sampled ones."""


@dataclass(frozen=True)
class Gates:
    """One draw.

    Attributes:
        active: the candidate whose gate is 1.
        involved: candidates that the draw is among, the active one included: all, or the two of mode "two".
    """

    active: int
    involved: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.active not in self.involved:
            raise ValueError(f"the active candidate {self.active} is not among those involved, {self.involved}")


def softmax(alpha: Float[np.ndarray, " candidates"]) -> Float[np.ndarray, " candidates"]:
    """p_i = exp(alpha_i) / sum_j exp(alpha_j)."""
    powers = np.exp(alpha - np.max(alpha))
    return powers / powers.sum()


def sample(alpha: Float[np.ndarray, " candidates"], mode: str, rng: np.random.Generator) -> Gates:
    """Draw the gates of one place (section 3.2).

    In mode "two" two distinct candidates are drawn without replacement from softmax(alpha), and which of them is active from the
    softmax over the two (section 3.2.1).

    Raises:
        ValueError: an unknown mode, or mode "two" with a single candidate.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; wanted one of {', '.join(MODES)}")
    alpha = np.asarray(alpha, float)
    if mode != "two":
        return Gates(int(rng.choice(len(alpha), p=softmax(alpha))), tuple(range(len(alpha))))
    if len(alpha) < 2:
        raise ValueError('mode "two" draws two candidates, but there is one; fix this layer instead of searching it')
    pair = rng.choice(len(alpha), 2, replace=False, p=softmax(alpha))
    active = int(rng.choice(pair, p=softmax(alpha[pair])))
    return Gates(active, tuple(sorted(map(int, pair))))


def rescale(
    before: Float[np.ndarray, " candidates"], after: Float[np.ndarray, " candidates"], gates: Gates
) -> Float[np.ndarray, " candidates"]:
    """Parameters after a step of mode "two", shifted so that every probability outside the two is what it was.

    Both alphas lose log(sum exp(after) / sum exp(before)), the sums over the two (section 3.2.1).
    """
    pair = list(gates.involved)
    shifted = np.array(after, float)
    shifted[pair] -= np.logaddexp.reduce(shifted[pair]) - np.logaddexp.reduce(np.asarray(before, float)[pair])
    return shifted


@dataclass
class Reinforce:
    """The architecture step by REINFORCE (section 3.3.2): gradients of -E[R] from rewards of sampled networks.

    baseline <- baseline + decay (mean R - baseline), before it is subtracted (authors' code; the first batch sets it).
    """

    decay: float = 0.99
    baseline: float | None = None

    def gradients(
        self,
        alphas: Sequence[Float[np.ndarray, " _"]],
        picks: Int[np.ndarray, "networks places"],
        rewards: Float[np.ndarray, " networks"],
    ) -> list[Float[np.ndarray, " _"]]:
        """-(1 / B) sum_b (R_b - baseline) grad log p(network b), for each place; descending it raises the reward."""
        mean = float(np.mean(rewards))
        self.baseline = mean if self.baseline is None else self.baseline + self.decay * (mean - self.baseline)
        found = []
        for place, alpha in enumerate(alphas):
            # grad log p of a pick is its one-hot vector less p.
            score = np.eye(len(alpha))[picks[:, place]] - softmax(np.asarray(alpha, float))
            found.append(-((rewards - self.baseline) @ score) / len(rewards))
        return found


def reward(accuracy: float, cost: float, reference: float, exponent: float = 0.1) -> float:
    """accuracy (reference / cost)^exponent, 0.1 in the authors' code."""
    return accuracy * (reference / cost) ** exponent
