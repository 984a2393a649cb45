"""A language model that is served: time of a step by the roofline over its layers, and requests that join and leave the batch.

The linear layers of the blocks are stored as ``kind``; embedding and head stay float16, as the authors' quantisation leaves them.
Beside them a step reads the keys and values of all running requests and spends ``overhead`` between steps, whatever the weights are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.architecture import Transformer
from common.hardware import Device, device, roofline
from common.serving import Request, Served, simulate
from papers.marlin.roofline import seconds


@dataclass(frozen=True)
class Engine:
    """Attributes:
    overhead: seconds between two steps.
    bits: of a weight, in place of the kind's own.
    """

    device: Device
    model: Transformer
    kind: str = "int4"
    overhead: float = 0.0
    bits: float | None = None

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(k, n) of one block's linear layers."""
        a = self.model
        heads, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        return [(a.width, heads + 2 * kv), (heads, a.width), (a.width, 2 * a.hidden), (a.hidden, a.width)]

    def linear(self, tokens: int) -> float:
        """Seconds of all blocks' linear layers."""
        return self.model.depth * sum(_product(self.device.key, tokens, *each, self.kind, self.bits) for each in self.layers)

    def rest(self, sequences: int, context: int) -> float:
        """Seconds of everything else in a step: the head of the last token of each sequence, the keys and values of
        ``context`` tokens in all, what comes between steps."""
        a = self.model
        head = _product(self.device.key, sequences, a.width, a.vocabulary, "fp16", None)
        return head + 2 * a.depth * a.kv_heads * a.head_dim * context * _number(self.device.key) + self.overhead

    def prefill(self, tokens: int) -> float:
        return self.linear(tokens) + self.rest(1, tokens)

    def decode(self, batch: int, context: int) -> float:
        return self.linear(batch) + self.rest(batch, context)

    def serve(self, requests: list[Request], slots: int) -> Served:
        return simulate(requests, prefill=self.prefill, decode=self.decode, slots=slots)


@functools.cache
def _product(key: str, m: int, k: int, n: int, kind: str, bits: float | None) -> float:
    return float(seconds(device(key), m, k, n, kind, bits))


@functools.cache
def _number(key: str) -> float:
    """Seconds for each cached number, 2 bytes and two operations."""
    return float(roofline(device(key), 2.0, 2.0, "fp16"))


def gains(
    card: Device, model: Transformer, batches: list[int], kind: str, overhead: float, bits: float | None = None,
    prompt: int = 64, output: int = 64,
) -> dict[int, float]:  # fmt: skip
    """Tokens a second over those with float16, when ``batch`` requests come at once, by batch."""
    found = {}
    for batch in batches:
        requests = [Request(0.0, prompt, output)] * batch
        ours, dense = (
            Engine(card, model, each, overhead, width).serve(requests, batch).tokens_per_second
            for each, width in ((kind, bits), ("fp16", None))
        )
        found[batch] = ours / dense
    return found


def latency(
    card: Device, model: Transformer, kind: str, loads: list[float], count: int, seed: int, overhead: float, slots: int = 64
) -> dict[str, list[float]]:
    """Mean seconds between tokens and to the first one when requests come at random, by requests a second."""
    found: dict[str, list[float]] = {"between tokens": [], "to the first": []}
    for load in loads:
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / load, count))
        served = Engine(card, model, kind, overhead).serve([Request(float(t), 64, 64) for t in arrivals], slots)
        found["between tokens"].append(float(served.time_per_token.mean()))
        found["to the first"].append(float((served.first_token - served.arrival).mean()))
    return found


def share(engine: Engine, batch: int, context: int) -> float:
    """The part of a decode step that is not the packed layers."""
    rest: Any = engine.rest(batch, context)
    return rest / (rest + engine.linear(batch))
