"""Elo ratings of a tournament, as a mean over random orders of its games, and score ratios with their order bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import no_type_check

import numpy as np
from numba import njit

Verdicts = Mapping[tuple[str, str], tuple[int, int, int]]
"""(first, second) -> games that the first won, tied, lost."""


def ratings(verdicts: Verdicts, *, k: float = 32, start: float = 1000, orders: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Mean Elo rating of each player, highest first.

    After each game R_a += k (s - 1 / (1 + 10^((R_b - R_a) / 400))) with s = 1, 1/2, 0 for a win, tie, loss, and R_b loses
    what R_a gains. Ratings depend on the order of the games, so they are averaged over random orders of all games.

    Args:
        k: points that are at stake in a game.
        start: rating of every player before the first game.
        orders: number of random orders.

    Raises:
        ValueError: no games, a player against itself, or fewer than one order.

    Source: QLoRA (arXiv 2305.14314), section 5.2 and Table 1; Elo, The Rating of Chessplayers, 1978.
    """
    if not any(map(sum, verdicts.values())) or orders < 1 or any(a == b for a, b in verdicts):
        raise ValueError("ratings: wanted at least one game between different players and at least one order")
    names = list(dict.fromkeys(name for pair in verdicts for name in pair))
    games = [
        (names.index(a), names.index(b), score)
        for (a, b), counts in verdicts.items()
        for score, count in zip((1.0, 0.5, 0.0), counts, strict=True)
        for _ in range(count)
    ]
    first, second, score = (np.array(column) for column in zip(*games, strict=True))
    rng, total = np.random.default_rng(seed), np.zeros(len(names))
    for _ in range(orders):
        order = rng.permutation(len(games))
        total += _tournament(first[order], second[order], score[order], len(names), float(k), float(start))
    return dict(sorted(zip(names, (total / orders).tolist(), strict=True), key=lambda item: -item[1]))


def of_reference(first_order: tuple[float, float], second_order: tuple[float, float]) -> dict[str, float]:
    """A model's score as a percentage of the reference's, from sums of scores in both orders.

    Args:
        first_order: (reference, model) where the reference was shown first.
        second_order: (model, reference) where the model was.

    Returns:
        "mean" of the two ratios, and each: the gap between them is the judge's preference for what it reads first.
    """
    shown_second, shown_first = 100 * first_order[1] / first_order[0], 100 * second_order[0] / second_order[1]
    return {"mean": (shown_second + shown_first) / 2, "shown second": shown_second, "shown first": shown_first}


@njit(cache=True)
@no_type_check
def _tournament(first, second, score, players, k, start):
    rating = np.full(players, start)
    for g in range(first.size):
        a, b = first[g], second[g]
        gain = k * (score[g] - 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400)))
        rating[a] += gain
        rating[b] -= gain
    return rating
