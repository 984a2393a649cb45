"""Workloads: pairs of prompt and output tokens, their histogram over the buckets, and arrivals.

The three data sets of the paper are not at hand offline. Their stand-ins are log-normal, with the mean that the data sets' own
papers give and a spread that is an assumption, set before anything was solved:

- short: a chat, 70 tokens in and 215 out on average (Zheng et al. 2023, LMSYS-Chat-1M, table 1), sigma 1.2 and 0.9;
- long: a scientific article of 3016 words and its abstract of 203 (Cohan et al. 2018, arXiv 1804.05685, table 1), at 1.4 tokens
  a word 4222 and 284 tokens, sigma 0.6 and 0.4;
- mixed: 80 % short and 20 % long (paper, section on the evaluation).

A file of the user's own, ``serving/<name>.csv`` with a prompt and an output in tokens on each line, below the folder that
REPRODUCTION_DATA names, takes the place of a stand-in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from common import UserError
from common.data import find
from papers.melange import published


@dataclass(frozen=True)
class LogNormal:
    """Sizes in tokens: exp(N(ln mean - sigma^2 / 2, sigma^2))."""

    mean: float
    sigma: float

    def draw(self, count: int, most: int, rng: np.random.Generator) -> Int[np.ndarray, " count"]:
        """Whole numbers from 1 to ``most``; what is larger is drawn again."""
        sizes = np.full(count, most + 1.0)
        while (wrong := sizes > most).any():
            sizes[wrong] = np.ceil(rng.lognormal(np.log(self.mean) - self.sigma**2 / 2, self.sigma, int(wrong.sum())))
        return sizes.astype(np.int64)


SOURCES = {
    "short": (LogNormal(69.5, 1.2), LogNormal(214.5, 0.9)),
    "long": (LogNormal(3016 * 1.4, 0.6), LogNormal(203 * 1.4, 0.4)),
}
LONG_SHARE = 0.2
NAMES = ("short", "long", "mixed")


def draw(name: str, count: int, rng: np.random.Generator) -> Int[np.ndarray, "count 2"]:
    """(prompt, output) of requests of a workload, of the user's own file where there is one."""
    if name not in NAMES:
        raise ValueError(f"there is no workload {name!r}; there are {', '.join(NAMES)}")
    if name == "mixed":
        both = [draw(each, count, rng) for each in ("short", "long")]
        return np.where(rng.random((count, 1)) < LONG_SHARE, both[1], both[0])
    if (own := own_pairs(name)) is not None:
        return own[rng.integers(0, len(own), count)]
    most = (published.INPUT_EDGES[-1], published.OUTPUT_EDGES[-1])
    return np.stack([source.draw(count, edge, rng) for source, edge in zip(SOURCES[name], most, strict=True)], axis=1)


def own_pairs(name: str) -> Int[np.ndarray, "count 2"] | None:
    """The pairs of the user's own file, or None where there is none."""
    folder, file = os.environ.get("REPRODUCTION_DATA"), f"serving/{name}.csv"
    if not folder or not (Path(folder) / file).is_file():
        return None
    path = find(file, "").path
    try:
        pairs = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise UserError(f"{path}: {error}; wanted two whole numbers on each line, prompt,output") from error
    if pairs.shape[1] != 2 or (pairs < 1).any():
        raise UserError(
            f"{path} has {pairs.shape[1]} columns, least {pairs.min()}; wanted prompt,output of at least 1 token each"
        )
    return pairs


def buckets(
    pairs: Int[np.ndarray, "count 2"],
    inputs: Sequence[int] = published.INPUT_EDGES,
    outputs: Sequence[int] = published.OUTPUT_EDGES,
) -> Int[np.ndarray, "count 2"]:
    """The bucket of each pair: the first edge that is not below it, both ways.

    Raises:
        ValueError: a request of no tokens, or of more than the last edge.
    """
    places = np.stack([np.searchsorted(np.array(e), pairs[:, i]) for i, e in enumerate((inputs, outputs))], axis=1)
    over = (places == (len(inputs), len(outputs))).any(axis=1) | (pairs < 1).any(axis=1)
    if over.any():
        raise ValueError(
            f"a request of {pairs[over][0].tolist()} tokens in and out is in no bucket; wanted 1 to {inputs[-1]} in "
            f"and 1 to {outputs[-1]} out: add an edge or cut the request"
        )
    return places


def histogram(
    pairs: Int[np.ndarray, "count 2"],
    inputs: Sequence[int] = published.INPUT_EDGES,
    outputs: Sequence[int] = published.OUTPUT_EDGES,
) -> Float[np.ndarray, "input output"]:
    """The share of the pairs in each bucket."""
    places = buckets(pairs, inputs, outputs)
    counts = np.zeros((len(inputs), len(outputs)))
    np.add.at(counts, (places[:, 0], places[:, 1]), 1)
    return counts / len(pairs)


def arrivals(rate: float, count: int, rng: np.random.Generator) -> Float[np.ndarray, " count"]:
    """Seconds of a Poisson stream."""
    return np.cumsum(rng.exponential(1 / rate, count))


def day(peak: float, rng: np.random.Generator) -> Float[np.ndarray, " hour"]:
    """Requests a second in each of 24 hours: a wave between a fifth of the peak at 4 h and the peak at 16 h, with 10 % of noise."""
    wave = 0.6 - 0.4 * np.cos(2 * np.pi * (np.arange(24) - 4) / 24)
    return peak * wave * rng.uniform(0.9, 1.1, 24)
