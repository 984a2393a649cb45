"""Who sends how many rows to whom, counted from routes and a placement; real ranks are held against it.

Two ways to run a mixture with experts on several GPUs. ``fixed``: a token belongs to the GPU that its sequence lies on; it is
dispatched to its experts and their outputs come back. Where experts live does not decide how far a token travels, only how evenly.
``follow``: a token stays where its likeliest expert is and is dispatched from there to the experts of the next layer (context-coherent
expert parallelism, Yao et al. 2024, arXiv 2401.08383: keys and values are gathered by all GPUs, so attention can run anywhere). Then
neighbouring layers matter, which is what the second program is about.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from jaxtyping import Int, Int64

from papers.moetuner.profile import Trace


class Flow(Enum):
    """Where a token is between two mixtures."""

    follow = "follow"
    fixed = "fixed"


def start_of(sequences: int, ranks: int) -> Int64[np.ndarray, " sequence"]:
    """The rank that every sequence lies on before the first layer: in turn, in parts as equal as can be."""
    return np.arange(sequences) * ranks // sequences


def count(
    trace: Trace, place: Int[np.ndarray, "layer expert"], ranks: int, flow: Flow
) -> Int64[np.ndarray, "layer exchange source target"]:
    """Rows from each rank to each, itself included, in the two exchanges of every layer: dispatch and combine."""
    home = np.repeat(start_of(trace.tokens // trace.length, ranks), trace.length)
    found = np.zeros((trace.layers, 2, ranks, ranks), np.int64)
    for layer, chosen in enumerate(trace.chosen):
        there = place[layer][chosen]
        found[layer, 0] = _pairs(home[:, None], there, ranks)
        if flow is Flow.follow:
            # The likeliest expert's output is already where the outputs are added up.
            home = there[:, 0]
            found[layer, 1] = _pairs(there, home[:, None], ranks)
        else:
            found[layer, 1] = found[layer, 0].T
    return found


def arrivals(trace: Trace, place: Int[np.ndarray, "layer expert"], ranks: int) -> Int64[np.ndarray, "layer rank"]:
    """Rows that the experts of every rank process."""
    return np.stack([np.bincount(place[i][each].ravel(), minlength=ranks) for i, each in enumerate(trace.chosen)])


def excess(arrived: Int[np.ndarray, "layer rank"]) -> float:
    """Busiest rank over the mean, less 1, mean over layers."""
    return float((arrived.max(axis=1) / arrived.mean(axis=1)).mean() - 1)


def remote(rows: Int[np.ndarray, "*all source target"]) -> Int64[np.ndarray, "*all source target"]:
    """Rows that leave their rank."""
    return rows * ~np.eye(rows.shape[-1], dtype=bool)


def _pairs(source: np.ndarray, target: np.ndarray, ranks: int) -> Int64[np.ndarray, "source target"]:
    source, target = np.broadcast_arrays(source, target)
    return np.bincount((source * ranks + target).ravel(), minlength=ranks**2).reshape(ranks, ranks)
