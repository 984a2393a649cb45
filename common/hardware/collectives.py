"""What collectives cost: bytes that a rank sends, and seconds, in the model latency + bytes / bandwidth of each message.

``size`` is the bytes of the whole vector (for all_gather and reduce_scatter: of all ranks' parts together). Ranks send and
receive at once, each over one link whose ``usable`` bandwidth is its own.

Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH (2005), section 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .devices import Link


class Cost(NamedTuple):
    """Bytes that the busiest rank sends, and seconds until all have finished."""

    sent: Any
    seconds: Any


def ring_reduce_scatter(link: Link, ranks: int, size: Any) -> Cost:
    """ranks - 1 steps, each of which passes one part, size / ranks, to the next rank."""
    _check(ranks)
    steps = ranks - 1
    return Cost(steps * size / ranks, steps * (link.latency + size / ranks / link.usable))


def ring_all_gather(link: Link, ranks: int, size: Any) -> Cost:
    """As :func:`ring_reduce_scatter`: the parts go round instead of the sums."""
    return ring_reduce_scatter(link, ranks, size)


def ring_all_reduce(link: Link, ranks: int, size: Any) -> Cost:
    """Reduce-scatter, then all-gather: 2 (ranks - 1) / ranks of the vector is sent by every rank."""
    cost = ring_reduce_scatter(link, ranks, size)
    return Cost(2 * cost.sent, 2 * cost.seconds)


def tree_all_reduce(link: Link, ranks: int, size: Any) -> Cost:
    """Up a binomial tree and down again: 2 ceil(log2 ranks) steps of the whole vector, half of which the root sends."""
    _check(ranks)
    levels = (ranks - 1).bit_length()
    return Cost(levels * size, 2 * levels * (link.latency + size / link.usable))


def all_to_all(link: Link, ranks: int, size: Any) -> Cost:
    """Every rank sends 1 / ranks of its ``size`` bytes to each of the others, one after the other."""
    _check(ranks)
    return Cost((ranks - 1) * size / ranks, (ranks - 1) * (link.latency + size / ranks / link.usable))


def hierarchical_all_reduce(inner: Link, outer: Link, nodes: int, each: int, size: Any) -> Cost:
    """Reduce-scatter within a node of ``each`` ranks, all-reduce of each part across nodes, all-gather within the node."""
    within, across = ring_reduce_scatter(inner, each, size), ring_all_reduce(outer, nodes, size / each)
    return Cost(2 * within.sent + across.sent, 2 * within.seconds + across.seconds)


def _check(ranks: int) -> None:
    if ranks < 1:
        raise ValueError(f"a collective of {ranks} ranks; wanted at least one")
