"""The zoo's mixture served by real ranks: what each runs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8

from common import zoo
from common.distributed import Group, Ranks
from papers.moetuner import layer_torch
from papers.moetuner.traffic import Flow


def rows(
    ranks: Ranks, name: str, text: UInt8[np.ndarray, "sequence length"], place: Int[np.ndarray, "layer expert"], flow: Flow
) -> Int64[np.ndarray, "layer exchange source target"]:
    """Rows that the ranks sent each other in serving a text."""
    return np.stack([sent for _, _, sent in ranks.run(_serve, name, text, place, place, flow, "float32")], axis=2)


def logits(
    ranks: Ranks,
    name: str,
    text: UInt8[np.ndarray, "sequence length"],
    place: Int[np.ndarray, "layer expert"],
    kept: Int[np.ndarray, "layer expert"],
    flow: Flow,
) -> Float[np.ndarray, "token vocabulary"]:
    """Logits in float64, from whichever rank each token ended on; ``kept``: where the weights are, if not where the map says."""
    found = ranks.run(_serve, name, text, place, kept, flow, "float64")
    token = np.concatenate([each for _, each, _ in found])
    return np.concatenate([each for each, _, _ in found])[token.argsort()]


def times(
    ranks: Ranks,
    name: str,
    text: UInt8[np.ndarray, "sequence length"],
    place: Int[np.ndarray, "layer expert"],
    flow: Flow,
    link: float,
) -> tuple[float, float]:
    """Seconds of all exchanges, and of all mixtures with them, of the slowest rank; every rank waits after an exchange as long as what it
    sent to another rank takes over a link of so many bytes a second."""
    found = ranks.run(_time, name, text, place, flow, link)
    return max(each for each, _ in found), max(each for _, each in found)


class _Slow:
    """A group whose exchanges take as long as over a slow link, and its clock."""

    def __init__(self, group: Group, link: float) -> None:
        self.group, self.link, self.seconds = group, link, 0.0
        self.rank, self.size = group.rank, group.size

    def all_to_all(self, parts: Any) -> Any:
        self.group.barrier()
        start = time.perf_counter()
        busiest = max(part.numel() * part.element_size() for rank, part in enumerate(parts) if rank != self.rank)
        got = self.group.all_to_all(parts)
        time.sleep(busiest / self.link)
        self.group.barrier()
        self.seconds += time.perf_counter() - start
        return got


def _time(group: Group, name: str, text: np.ndarray, place: np.ndarray, flow: Flow, link: float) -> tuple[float, float]:
    slow, whole = _Slow(group, link), 0.0

    def timed(_: Group, *arguments: Any) -> Any:
        nonlocal whole
        group.barrier()
        start = time.perf_counter()
        found = layer_torch.mixture(slow, *arguments)  # type: ignore[arg-type]
        whole += time.perf_counter() - start
        return found

    _forward(group, name, text, place, place, flow, "float32", timed)
    return slow.seconds, whole


def _serve(
    group: Group, name: str, text: np.ndarray, place: np.ndarray, kept: np.ndarray, flow: Flow, dtype: str
) -> tuple[Any, Any, Any]:
    state, sent = _forward(group, name, text, place, kept, flow, dtype)
    return state.x.cpu().numpy() if dtype == "float64" else None, state.token.cpu().numpy(), sent


def _forward(
    group: Group,
    name: str,
    text: np.ndarray,
    place: np.ndarray,
    kept: np.ndarray,
    flow: Flow,
    dtype: str,
    run: Callable[..., Any] | None = None,
) -> tuple[layer_torch.State, np.ndarray]:
    model = _model(name, dtype, group.device)
    own = [
        {number: block.feed_forward.experts[number] for number in np.nonzero(here == group.rank)[0].tolist()}
        for block, here in zip(model.blocks, kept, strict=True)
    ]
    tokens = torch.from_numpy(text.astype(np.int64)).to(group.device)
    with torch.inference_mode():
        return layer_torch.forward(group, model, own, tokens, place, flow, run)


@functools.lru_cache(maxsize=2)
def _model(name: str, dtype: str, device: str) -> Any:
    """Ranks are kept between calls, and so are their models."""
    return zoo.load(name).torch(dtype=getattr(torch, dtype)).to(device)
