"""Measure this machine for the model: ``mpiexec -n 2 python -m papers.tempi.measure_system [options]`` writes ``perf.json``.

Two ranks time copies, packing and ping-pongs, each until its samples pass the test of :mod:`papers.tempi.iid`. The grids are
the authors': powers of two of bytes for what is contiguous; 2^6, 2^8, ... bytes by blocks of 2^0 .. 2^9 bytes for what is not,
512 bytes apart. What the layer does is measured through the layer's own calls, and what the library does beside it, so that it
is one of the choices.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from papers.tempi import perf
from papers.tempi.datatypes import BYTE, Vector
from papers.tempi.handles import build
from papers.tempi.iid import Sampling, Timed, measure
from papers.tempi.interpose import install
from papers.tempi.interpose.layer import Settings
from papers.tempi.model import METHODS, Model

STRIDE = 512

MPI: Any = install({"TEMPI_DATATYPE_ONESHOT": ""})
LAYER = MPI.layer.LAYER
FORCED = {method: Settings(method=method) for method in METHODS}


class Bench:
    """Times on the first two ranks of a communicator; a time is what rank 0 found, as both must agree on the rounds."""

    def __init__(self, comm: Any, sampling: Sampling) -> None:
        self.comm, self.sampling, self.rng = comm, sampling, np.random.default_rng(comm.rank)
        self.failed = self.timed = 0

    def time(self, once: Callable[[], Any], together: bool = False) -> float:
        """Seconds of one call. ``together``: both ranks call it, and half its time counts; else rank 0 alone."""
        if not together and self.comm.rank:
            return 0.0
        once()
        start = time.perf_counter()
        once()
        loops = max(1, int(self.sampling.least / max(time.perf_counter() - start, 1e-9)))
        loops = self.comm.bcast(loops) if together else loops

        def sample() -> float:
            begin = time.perf_counter()
            for _ in range(loops):
                once()
            return (time.perf_counter() - begin) / loops / (2 if together else 1)

        agree = (lambda more: self.comm.bcast(more)) if together else bool
        found: Timed = measure(sample, self.sampling, self.rng, agree)
        self.timed, self.failed = self.timed + 1, self.failed + (not found.iid)
        return found.seconds

    def pingpong(self, send: Callable[[], Any], receive: Callable[[], Any]) -> float:
        """Half the time of there and back."""

        def once() -> None:
            if self.comm.rank == 0:
                send()
                receive()
            else:
                receive()
                send()

        self.comm.Barrier()
        return self.time(once, together=True)


class Rows:
    """``size`` bytes in blocks ``stride`` apart: the type, memory that was written to, and packed bytes."""

    def __init__(self, size: int, block: int, objects: int = 1, stride: int = STRIDE) -> None:
        described = Vector(size // block, block, stride, BYTE)
        self.count = objects
        self.type = build(described, MPI).Commit()
        # Memory that was never written to is one page of zeros, and fast.
        self.memory = np.full(described.extent * objects, 1, np.uint8)
        self.packed = np.full(size * objects, 2, np.uint8)

    def free(self) -> None:
        self.type.Free()


def ways(comm: Any, rows: Rows) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """(send, receive) of each method between ranks 0 and 1, as an application calls them."""
    peer, whole = 1 - comm.rank, [rows.memory, rows.count, rows.type]

    def forced(method: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        def send() -> None:
            LAYER.settings = FORCED[method]
            comm.Send(whole, peer)

        def receive() -> None:
            LAYER.settings = FORCED[method]
            comm.Recv(whole, peer)

        return send, receive

    below = MPI.real.Comm
    library = lambda: below.Send(comm, whole, peer), lambda: below.Recv(comm, whole, peer)
    return {"library": library, "oneshot": forced("oneshot"), "staged": forced("staged")}


def table(bench: Bench, largest: int, memory: int) -> Model:
    """All tables up to ``largest`` bytes; a cell whose memory would exceed ``memory`` takes its time from the one to its right."""
    comm = bench.comm
    lengths = [2**k for k in range(largest.bit_length())]
    sizes = [2**k for k in range(6, largest.bit_length(), 2)]
    blocks = [2**k for k in range(10)]
    flat = {name: np.zeros(len(lengths)) for name in ("pingpong", "d2h", "h2d")}
    for i, length in enumerate(lengths):
        a, b = np.full(length, 1, np.uint8), np.full(length, 2, np.uint8)
        spec = [a, length, MPI.PACKED]
        flat["pingpong"][i] = bench.pingpong(partial(comm.Send, spec, 1 - comm.rank), partial(comm.Recv, spec, 1 - comm.rank))
        flat["d2h"][i] = bench.time(partial(np.copyto, b, a))
        flat["h2d"][i] = bench.time(partial(np.copyto, a, b))
    square = {
        name: np.zeros((len(sizes), len(blocks))) for name in ("pack", "unpack", "library_pack", "library_unpack", "library_send")
    }
    for i, size in enumerate(sizes):
        for j, block in reversed(list(enumerate(blocks))):
            if block > size or size // block * STRIDE > memory:
                # A block longer than the object is the object; one that is too dear takes the time of the next longer one.
                continue
            rows = Rows(size, block)
            for name, call in packing(comm, rows).items():
                square[name][i, j] = bench.time(call)
            square["library_send"][i, j] = bench.pingpong(*ways(comm, rows)["library"])
            rows.free()
    for each in square.values() if comm.rank == 0 else ():
        _fill(each)
    grids = (np.array(sizes, float), np.array(blocks, float), np.array(lengths, float))
    plain = Model(*grids, tables={**flat, **square})
    # What a small message takes beyond its parts.
    rows = Rows(sizes[0], 8)
    whole = bench.pingpong(*ways(comm, rows)["oneshot"])
    rows.free()
    return Model(
        *grids, tables=plain.tables, call=max(0.0, whole - plain.send("oneshot", sizes[0], 8)) if comm.rank == 0 else 0.0
    )


def packing(comm: Any, rows: Rows) -> dict[str, Callable[[], Any]]:
    """Pack and Unpack, as an application calls them and in the library below."""
    memory, packed, kind, below = rows.memory, rows.packed, rows.type, MPI.real.Datatype
    return {
        "pack": lambda: kind.Pack(memory, packed, 0, comm),
        "unpack": lambda: kind.Unpack(packed, 0, memory, comm),
        "library_pack": lambda: below.Pack(kind, memory, packed, 0, comm),
        "library_unpack": lambda: below.Unpack(kind, packed, 0, memory, comm),
    }


def _fill(times: np.ndarray) -> None:
    """Cells that were left out take the time of their nearest measured neighbour in the row."""
    for row in times:
        known = np.flatnonzero(row)
        row[:] = row[known[np.abs(np.arange(row.size)[:, None] - known).argmin(axis=1)]]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="papers.tempi.measure_system", description="Measure this machine and write perf.json.")
    parser.add_argument("--largest", type=int, default=2**22, help="bytes of the largest message")
    parser.add_argument("--memory", type=int, default=2**28, help="bytes that one measurement may take")
    parser.add_argument("--samples", type=int, default=32, help="samples of a round, which the test looks at")
    parser.add_argument("--rounds", type=int, default=5, help="rounds at most")
    parser.add_argument("--seconds", type=float, default=0.5, help="no further round after these seconds")
    parser.add_argument("--out", type=Path, default=None, help="file to write; default: perf.json in TEMPI_CACHE_DIR")
    options = parser.parse_args(arguments)
    comm = MPI.COMM_WORLD
    if comm.size != 2:
        if comm.rank == 0:
            print(
                f"measure_system: got {comm.size} ranks, wanted 2: mpiexec -n 2 python -m papers.tempi.measure_system",
                file=sys.stderr,
            )
        return 2
    sampling = Sampling(samples=options.samples, rounds=options.rounds, seconds=options.seconds, permutations=2000)
    bench = Bench(comm, sampling)
    found = table(bench, options.largest, options.memory)
    if comm.rank == 0:
        path = options.out or perf.folder() / "perf.json"
        notes = {"times": bench.timed, "not IID": bench.failed, "samples": options.samples}
        perf.write(path, found, MPI.Get_library_version(), notes)
        print(f"wrote {path}: {bench.timed} times, {bench.failed} of which never passed the test for IID samples")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
