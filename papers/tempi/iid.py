"""Whether timings look like independent draws from one distribution; only then their trimean is recorded.

Each statistic of the series is ranked among those of random permutations of it, as NIST SP 800-90B (2018, section 5.1) does
for random bits. A series whose order matters (a drift, waves, a warm-up) has a statistic that hardly any permutation has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

PERMUTATIONS, TAIL = 10_000, 5
"""As SP 800-90B: the series fails if at most 5 of 10,000 permutations lie on one side of it, 1 in 1000 by chance."""


def trimean(samples: Float[np.ndarray, " n"]) -> float:
    """(Q1 + 2 Q2 + Q3) / 4, Tukey's robust mean."""
    q1, q2, q3 = np.quantile(samples, (0.25, 0.5, 0.75))
    return float((q1 + 2 * q2 + q3) / 4)


def is_iid(samples: Float[np.ndarray, " n"], rng: np.random.Generator, permutations: int = PERMUTATIONS) -> bool:
    """Whether no statistic of the series is as extreme as happens once in a thousand permutations.

    Raises:
        ValueError: fewer than 7 samples: some order of them is then always that rare.
    """
    if len(samples) < 7:
        raise ValueError(f"is_iid: {len(samples)} samples; wanted at least 7")
    if np.ptp(samples) == 0:
        return True
    tail = TAIL * permutations / PERMUTATIONS
    found = statistics(samples[None])
    drawn = statistics(rng.permuted(np.broadcast_to(samples, (permutations, len(samples))), axis=1))
    for name, value in found.items():
        above, equal = int((drawn[name] > value).sum()), int((drawn[name] == value).sum())
        if above + equal <= tail or above >= permutations - tail:
            return False
    return True


def statistics(series: Float[np.ndarray, "m n"]) -> dict[str, Float[np.ndarray, " m"]]:
    """The permutation statistics of section 5.1 that suit real numbers, of each of m series.

    Those that count equal values (collisions) say nothing of times, which are hardly ever equal; periodicity and compression
    are of bits. The covariance at lag 1 stands for them.
    """
    centred = series - series.mean(axis=1, keepdims=True)
    rising = np.diff(series, axis=1) >= 0
    high = series >= np.median(series, axis=1, keepdims=True)
    ups = rising.sum(axis=1)
    return {
        "excursion": np.abs(np.cumsum(centred, axis=1)).max(axis=1),
        "directional runs": _runs(rising),
        "longest directional run": _longest(rising),
        "increases or decreases": np.maximum(ups, rising.shape[1] - ups).astype(float),
        "runs about the median": _runs(high),
        "longest run about the median": _longest(high),
        "covariance": (centred[:, 1:] * centred[:, :-1]).sum(axis=1),
    }


def _runs(flags: np.ndarray) -> Float[np.ndarray, " m"]:
    return 1.0 + (flags[:, 1:] != flags[:, :-1]).sum(axis=1)


def _longest(flags: np.ndarray) -> Float[np.ndarray, " m"]:
    """Length of the longest run of equal flags in each row."""
    m, n = flags.shape
    begins = np.ones((m, n), bool)
    begins[:, 1:] = flags[:, 1:] != flags[:, :-1]
    since = np.maximum.accumulate(np.where(begins, np.arange(n), 0), axis=1)
    return (np.arange(n) - since + 1.0).max(axis=1)


@dataclass(frozen=True)
class Sampling:
    """How long one time is measured: rounds of ``samples`` until one is IID, within ``seconds``; a sample takes ``least``."""

    samples: int = 32
    rounds: int = 5
    seconds: int | float = 1.0
    least: float = 2e-4
    permutations: int = PERMUTATIONS


@dataclass(frozen=True)
class Timed:
    seconds: float
    iid: bool
    rounds: int


def measure(
    sample: Callable[[], float], sampling: Sampling, rng: np.random.Generator, go_on: Callable[[bool], bool] = bool
) -> Timed:
    """Draw rounds of times until one passes the test; the last one counts if none does.

    ``go_on(wanted)`` decides for all ranks that measure together whether there is another round.
    """
    start, rounds, passed = time.perf_counter(), 0, False
    while True:
        series = np.array([sample() for _ in range(sampling.samples)])
        rounds += 1
        passed = is_iid(series, rng, sampling.permutations)
        more = not passed and rounds < sampling.rounds and time.perf_counter() - start < sampling.seconds
        if not go_on(more):
            return Timed(trimean(series), passed, rounds)
