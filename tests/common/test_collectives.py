"""Closed forms of collectives against messages that are really passed, one after the other, between lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.hardware import collectives, link

LINK = link("infiniband_hdr")


class Wire:
    """Counts what ranks send, in steps in which each sends at most one message."""

    def __init__(self, ranks: int) -> None:
        self.sent, self.seconds = np.zeros(ranks), 0.0

    def step(self, messages: list[tuple[int, int, np.ndarray]]) -> None:
        assert len({source for source, _, _ in messages}) == len(messages) == len({to for _, to, _ in messages})
        for source, _, content in messages:
            self.sent[source] += content.nbytes
        self.seconds += max((LINK.seconds(content.nbytes) for _, _, content in messages), default=0.0)


def ring(data: np.ndarray) -> tuple[np.ndarray, Wire]:
    """All-reduce of (ranks, ranks, part): reduce-scatter, then all-gather."""
    ranks, data, wire = len(data), data.copy(), Wire(len(data))
    for gather in (False, True):
        for step in range(ranks - 1):
            messages = [(r, (r + 1) % ranks, data[r, (r - step + gather) % ranks].copy()) for r in range(ranks)]
            wire.step(messages)
            for source, to, content in messages:
                part = (source - step + gather) % ranks
                data[to, part] = content if gather else data[to, part] + content
    return data, wire


def tree(data: np.ndarray) -> tuple[np.ndarray, Wire]:
    ranks, data, wire = len(data), data.copy(), Wire(len(data))
    levels = [1 << level for level in range((ranks - 1).bit_length())]
    for up in (True, False):
        for stride in levels if up else levels[::-1]:
            pairs = [(r + stride, r) if up else (r, r + stride) for r in range(0, ranks - stride, 2 * stride)]
            wire.step([(source, to, data[source].copy()) for source, to in pairs])
            for source, to in pairs:
                data[to] = data[to] + data[source] if up else data[source]
    return data, wire


@given(st.integers(1, 9), st.integers(1, 5))
def test_all_reduce_equals_the_messages_of_its_algorithm(ranks: int, part: int) -> None:
    data = np.random.default_rng(0).standard_normal((ranks, ranks, part))
    for algorithm, closed in ((ring, collectives.ring_all_reduce), (tree, collectives.tree_all_reduce)):
        result, wire = algorithm(data)
        np.testing.assert_allclose(result, np.broadcast_to(data.sum(0), data.shape))
        cost = closed(LINK, ranks, data[0].nbytes)
        assert (wire.sent.max(), wire.seconds) == (pytest.approx(cost.sent), pytest.approx(cost.seconds))


def test_parts_and_levels() -> None:
    size = np.array([1e6, 1e9])
    halves = collectives.ring_reduce_scatter(LINK, 8, size), collectives.ring_all_gather(LINK, 8, size)
    np.testing.assert_allclose(sum(each.sent for each in halves), collectives.ring_all_reduce(LINK, 8, size).sent)
    np.testing.assert_allclose(collectives.all_to_all(LINK, 4, size).sent, size * 3 / 4)
    # One node is its own ring; one rank in each node leaves the ring across nodes.
    pcie = link("pcie_4_x16")
    assert collectives.hierarchical_all_reduce(pcie, LINK, 1, 4, 1e9) == collectives.ring_all_reduce(pcie, 4, 1e9)
    assert collectives.hierarchical_all_reduce(pcie, LINK, 4, 1, 1e9) == collectives.ring_all_reduce(LINK, 4, 1e9)
    with pytest.raises(ValueError, match="0 ranks"):
        collectives.ring_all_gather(LINK, 0, 1.0)
