"""Routing of a model that cannot be run here: Mixtral's shape, with the skew and the dependency of a model that can.

Experts of a layer have popularity by Zipf's law, 1 / rank^skew, ranks dealt at random in every layer. A token's first and
second choice each go on, with probability ``dependence``, to the expert of the same rank of the next layer; else they are
drawn anew by popularity, never the same expert twice. Following ranks leaves popularity as it is.

The two parameters were fitted by :func:`fit` to two statistics of the zoo's mixture on the books that it is profiled on, before
any time was modelled with them, and have not been changed since.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from papers.moetuner.profile import Trace, profile, successors, variation

SKEW = 0.274
DEPENDENCE = 0.356


def draw(
    tokens: int, rng: np.random.Generator, layers: int = 32, experts: int = 8, skew: float = SKEW, dependence: float = DEPENDENCE
) -> Trace:
    """Routes of top-2 mixtures.

    Raises:
        ValueError: fewer than three experts, or a dependence that is no probability.
    """
    if experts < 3 or not 0 <= dependence <= 1 or skew < 0:
        raise ValueError(f"experts={experts}, dependence={dependence}, skew={skew}; wanted from 3 experts, 0 to 1, and from 0")
    popularity = np.arange(1, experts + 1) ** -skew
    ranks = np.empty((layers, tokens, 2), np.int64)
    ranks[0] = _two(popularity, tokens, rng)
    for layer in range(1, layers):
        ranks[layer] = _next(ranks[layer - 1], popularity, dependence, rng)
    order = rng.permuted(np.tile(np.arange(experts), (layers, 1)), axis=1)
    return Trace(order[np.arange(layers)[:, None, None], ranks], experts, 1)


def fit(target: Trace, tokens: int = 40_000, seed: int = 0) -> tuple[float, float]:
    """Skew and dependence with which :func:`draw` has a trace's load variation and share of the top successor."""
    from scipy.optimize import least_squares

    counted = profile(target)
    want = np.array([variation(counted.load), successors(counted.moved, 1)])

    def miss(x: np.ndarray) -> np.ndarray:
        # The same random numbers for every trial, so that the miss is a function of the parameters.
        trial = profile(draw(tokens, np.random.default_rng(seed), 8, target.experts, x[0], x[1]))
        return np.array([variation(trial.load), successors(trial.moved, 1)]) / want - 1

    found = least_squares(miss, [0.3, 0.3], bounds=([0, 0], [3, 1]), diff_step=0.05)
    return float(found.x[0]), float(found.x[1])


def _two(popularity: np.ndarray, tokens: int, rng: np.random.Generator) -> Int64[np.ndarray, "token 2"]:
    """Two different ranks for each token, as drawn one after the other: the largest of log p + Gumbel noise."""
    noisy = np.log(popularity) + rng.gumbel(size=(tokens, len(popularity)))
    return np.argsort(-noisy, axis=1)[:, :2]


def _next(
    last: Int64[np.ndarray, "token 2"], popularity: np.ndarray, dependence: float, rng: np.random.Generator
) -> Int64[np.ndarray, "token 2"]:
    follows: np.ndarray = rng.random(last.shape) < dependence
    first, second = follows.T
    noisy = np.log(popularity) + rng.gumbel(size=(len(last), len(popularity)))
    # A choice that follows takes its rank first; what is drawn anew must differ from it.
    rows = np.arange(len(last))
    for place, which in enumerate((first, second)):
        noisy[rows[which], last[which, place]] = np.inf
    new = np.argsort(-noisy, axis=1, kind="stable")[:, :2]
    # If both follow, each keeps its place; if the second alone does, it has come first.
    return np.where((first & second)[:, None], last, np.where((second & ~first)[:, None], new[:, ::-1], new))
