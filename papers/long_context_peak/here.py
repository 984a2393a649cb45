"""The theory on the machine at hand: its peaks, real prefills, decode steps and switches to disk, and the same formulas.

Every resource has one efficiency factor, fitted at one named point; the error is that of all other points.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import zoo
from common.meter import median_seconds
from common.models.transformer_torch import Cache, TransformerLM, softmax_attention
from common.models.weights import to_torch
from papers.long_context_peak import analysis
from papers.long_context_peak.analysis import Convention, Machine, Model

MIB = 2**20
SWITCHES = 21
"""Timings of each switch, which is short and at the mercy of the disk."""


class Peaks(NamedTuple):
    """FLOP/s of a square product, bytes/s of reading memory, bytes/s of a file written for good and of one read."""

    compute: float
    bandwidth: float
    write: float
    read: float


class Point(NamedTuple):
    """One measurement: what, at how many tokens, the seconds it took, and the seconds at the peaks."""

    kind: str
    tokens: int
    seconds: float
    ideal: float


def peaks(folder: Path, size: int = 1024, megabytes: int = 256) -> Peaks:
    """Of this machine, float32, with the threads that PyTorch uses."""
    a, b = torch.randn(2, size, size)
    big = torch.ones(megabytes * MIB // 4)
    taken = median_seconds({"product": lambda: a @ b, "sum": lambda: big.sum()}, repeats=5, least=0.05)
    block = np.random.default_rng(0).integers(0, 255, 32 * MIB, np.uint8)
    write, read = (block.nbytes / seconds for seconds in switches(folder, block, 5))
    return Peaks(2 * size**3 / taken["product"], big.nbytes / taken["sum"], write, read)


class Swap:
    """A swap area as an operating system has one: two files whose room is taken before anything is timed."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files = [(folder / name).open("wb+", buffering=0) for name in ("leaving", "entering")]
        for file in self.files:
            file.write(bytes(size))
            os.fsync(file.fileno())

    def keep(self, entering: np.ndarray) -> None:
        """Put there what will be fetched later."""
        self._write(self.files[1], entering)

    def turn(self, leaving: np.ndarray, room: np.ndarray) -> tuple[float, float]:
        """Seconds of writing one user's cache until the disk has it, and of reading the other's into ``room``, past the page
        cache where the system lets us."""
        out, back = self.files
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(back.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        self._write(out, leaving)
        middle = time.perf_counter()
        back.seek(0)
        view = memoryview(room).cast("B")
        while view:
            view = view[back.readinto(view) or len(view) :]
        return middle - start, time.perf_counter() - middle

    def close(self) -> None:
        for file in self.files:
            file.close()

    @staticmethod
    def _write(file: Any, content: np.ndarray) -> None:
        file.seek(0)
        view = memoryview(content).cast("B")
        while view:
            view = view[file.write(view) :]
        getattr(os, "fdatasync", os.fsync)(file.fileno())


def switches(folder: Path, cache: np.ndarray, repeats: int) -> tuple[float, float]:
    """Median seconds of one user's cache to the disk, and of another's of the same size back."""
    swap, room = Swap(folder, cache.nbytes), np.empty_like(cache)
    try:
        swap.keep(cache)
        out, back = zip(*[swap.turn(cache, room) for _ in range(repeats)], strict=True)
    finally:
        swap.close()
    if not np.array_equal(room, cache):
        raise OSError(f"{folder}: a cache did not come back as it left")
    return statistics.median(out), statistics.median(back)


def measure(name: str, lengths: Sequence[int], repeats: int, seed: int = 0) -> tuple[Peaks, list[Point]]:
    """Prefill, decode and switch of a model of the zoo at each length, with a context that is long enough (the positions are
    rotations, so weights stay as they are; what it says beyond its training does not matter here)."""
    trained = zoo.load(name)
    architecture = dataclasses.replace(trained.architecture, context=max(lengths) + 1)
    lm = TransformerLM(architecture, attention)
    to_torch(lm.eval(), trained.weights)
    model = analysis.model(architecture, element=4.0)
    rng, points = np.random.default_rng(seed), []
    with tempfile.TemporaryDirectory() as name_of_folder, torch.no_grad():
        folder = Path(name_of_folder)
        best = peaks(folder)
        for tokens in lengths:
            ids = torch.from_numpy(rng.integers(0, architecture.vocabulary, (1, tokens)))
            cache = lm.empty_cache(1)
            full = Cache(cache.keys, cache.values, tokens)
            lm.step(ids, cache)
            calls = {"prefill": lambda i=ids: lm(i), "decode": lambda i=ids, c=full: lm.step(i[:, :1], c)}
            taken = median_seconds(calls, repeats=repeats, least=0.02)
            # A user's cache as it would leave: its filled positions, in one piece.
            whole = torch.stack([cache.keys[..., :tokens, :], cache.values[..., :tokens, :]]).numpy().reshape(-1)
            taken["switch"] = sum(switches(folder, whole, SWITCHES))
            ideal = predict(model, best, tokens)
            points += [Point(kind, tokens, taken[kind], ideal[kind]) for kind in ideal]
    return best, points


def predict(model: Model, best: Peaks, tokens: int) -> dict[str, float]:
    """The paper's formulas at the peaks; both ways of a switch at the disk's own rates."""
    machine = Machine(best.compute, best.bandwidth, float("inf"), 2 / (1 / best.write + 1 / best.read))
    return {
        "prefill": float(analysis.prefill_seconds(model, machine, tokens, convention=Convention.strict)),
        "decode": float(analysis.decode_seconds(model, machine, tokens, 1)),
        "switch": float(analysis.switch_seconds(model, machine, tokens, tokens)),
    }


def attention(q: Tensor, k: Tensor, v: Tensor, layer: int, start: int = 0) -> Tensor:
    """Softmax attention; one query sees all keys, so that a decode step needs no mask."""
    if q.shape[2] > 1:
        return softmax_attention(q, k, v, layer, start)
    groups = q.shape[1] // k.shape[1]
    folded = q.reshape(q.shape[0], k.shape[1], groups, q.shape[3])  # the query heads of a key head as its queries
    return F.scaled_dot_product_attention(folded, k, v).reshape(q.shape)


def fit(points: Sequence[Point], at: int) -> dict[str, float]:
    """The efficiency of each kind's resource, from its point at ``at`` tokens alone: ideal over measured seconds."""
    return {point.kind: point.ideal / point.seconds for point in points if point.tokens == at}


def errors(points: Sequence[Point], efficiency: dict[str, float], at: int) -> dict[str, float]:
    """Median relative error of the predictions at all lengths but the one that was fitted on, by kind."""
    found: dict[str, list[float]] = {}
    for point in points:
        if point.tokens != at:
            predicted = point.ideal / efficiency[point.kind]
            found.setdefault(point.kind, []).append(abs(predicted / point.seconds - 1))
    return {kind: statistics.median(each) for kind, each in found.items()}
