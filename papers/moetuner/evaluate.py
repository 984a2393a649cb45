"""What a placement is worth on other text than it was made for: a model of a step's time.

    time of a layer = attention + max_g T_g / rate + busiest link of dispatch + busiest link of combine

Attention is the same for every placement: each GPU attends for its share of the tokens and, so that a token may stay where its expert is,
gathers the keys and values of all. Rows are those that :mod:`papers.moetuner.traffic` counts and real ranks confirm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from common import hardware
from common.architecture import Transformer
from papers.moetuner import published, traffic
from papers.moetuner.profile import Trace
from papers.moetuner.traffic import Flow


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes.

    Attributes:
        bandwidth: bytes a second from each GPU to each; a GPU's link is shared evenly by those that it reaches over it.
        rate: operations a second of one GPU, as products of matrices reach them.
    """

    bandwidth: Float[np.ndarray, "gpu gpu"]
    rate: float

    @property
    def gpus(self) -> int:
        return len(self.bandwidth)


def cluster(nodes: int, gpus: int, share: float = 1.0) -> Cluster:
    """So many GPUs over so many nodes: NVLink within a node, InfiniBand between them; ``share`` of its bandwidth."""
    if nodes < 1 or gpus % nodes or gpus < 2:
        raise ValueError(f"{gpus} GPUs in {nodes} nodes; wanted at least 2, as many in each node")
    device, each = hardware.device(published.GPU), gpus // nodes
    node = np.arange(gpus) // each
    within = device.nvlink / max(each - 1, 1)
    between = share * hardware.link(published.LINK).usable / max(gpus - each, 1)
    bandwidth = np.where(node[:, None] == node, within, between)
    np.fill_diagonal(bandwidth, np.inf)
    return Cluster(bandwidth, published.EFFICIENCY * device.peak("bf16"))


@dataclass(frozen=True)
class Step:
    """Seconds of each layer for all tokens of a trace."""

    attention: Float[np.ndarray, " layer"]
    experts: Float[np.ndarray, " layer"]
    links: Float[np.ndarray, " layer"]

    @property
    def seconds(self) -> float:
        return float((self.attention + self.experts + self.links).sum())


def step(
    trace: Trace,
    place: Int[np.ndarray, "layer expert"],
    machines: Cluster,
    model: Transformer,
    context: int,
    flow: Flow = Flow.follow,
) -> Step:
    """The time of a prefill of the trace's tokens, as sequences of ``context``."""
    gpus, element = machines.gpus, published.BYTES
    counted = hardware.counts.operators(model, tokens=context)
    outside = sum(each.operations for name, each in counted.items() if name not in ("feed_forward", "embedding", "head"))
    attention = trace.tokens / gpus * outside / context / model.depth / machines.rate
    if flow is Flow.follow:
        gathered = trace.tokens / gpus * 2 * model.kv_heads * model.head_dim * element
        off = ~np.eye(gpus, dtype=bool)
        attention += float((gathered / machines.bandwidth[off]).max())
    per_row = counted["feed_forward"].operations / context / model.depth / model.active
    experts = traffic.arrivals(trace, place, gpus).max(axis=1) * per_row / machines.rate
    rows = traffic.remote(traffic.count(trace, place, gpus, flow))
    links = (rows * model.width * element / machines.bandwidth).max(axis=(2, 3)).sum(axis=1)
    return Step(np.full(trace.layers, attention), experts, links)
