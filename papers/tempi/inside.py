"""What runs within MPI processes: ``mpiexec -n N python -m papers.tempi.inside <task> <options as JSON> <file for the answer>``.

Tasks take the options that :mod:`papers.tempi.measured` sends, and rank 0 writes what they return.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.meter import median_seconds
from papers.tempi import perf
from papers.tempi.constructions import boxes, draws, rows
from papers.tempi.datatypes import BYTE, DOUBLE, Contiguous, Datatype, Vector
from papers.tempi.handles import build
from papers.tempi.interpose import install
from papers.tempi.typemap import blocks, offsets

GUARD = 64
"""Bytes around what a type touches, which nobody may write."""


def bytes_(seed: int, types: int, layer: bool, **_: Any) -> dict[str, Any]:
    """Random types packed and unpacked: how many give other bytes or another position than the library.

    Twice: by the calls of an application, which leave to the library what reaches outside the buffer they name; and by the
    layer's copy itself on a buffer that begins earlier, so that negative offsets are seen too.
    """
    MPI = _module(layer)
    rng, seen = np.random.default_rng(seed), Counter[str]()
    for described in draws(seed, types):
        handle = build(described, MPI).Commit()
        (_, extent), (lowest, width), count = handle.Get_extent(), handle.Get_true_extent(), int(rng.integers(1, 4))
        entry = MPI.layer.LAYER.types.get(handle.handle) if layer else None
        if extent <= 0 or not handle.Get_size():
            handle.Free()
            continue
        before = max(0, -lowest) + GUARD
        memory = rng.integers(0, 256, before + max(0, lowest) + width + count * extent + GUARD, dtype=np.uint8)
        size = count * handle.Get_size()

        def window(array: np.ndarray, at: int = before, length: int = extent * count) -> Any:
            return MPI.memory.fromaddress(array.ctypes.data + at, length)

        def packed(
            pack: Callable[..., Any], there: Any = window, memory: np.ndarray = memory, size: int = size
        ) -> tuple[int, bytes]:
            out = np.zeros(size + 5, np.uint8)
            return pack(there(memory), out, 5, MPI.COMM_SELF), out.tobytes()

        def unpacked(unpack: Callable[..., Any], there: Any = window, memory: np.ndarray = memory, size: int = size) -> bytes:
            target = np.full_like(memory, 7)
            unpack(memory[:size].copy() if memory.size >= size else np.resize(memory, size), 0, there(target), MPI.COMM_SELF)
            return target.tobytes()

        real = getattr(MPI, "real", MPI).Datatype
        want = packed(partial(real.Pack, handle)), unpacked(partial(real.Unpack, handle))
        seen["types"] += 1
        seen["wrong by the calls"] += (packed(handle.Pack), unpacked(handle.Unpack)) != want
        if entry is not None:
            made = entry.copy(count)
            moved = dataclasses.replace(made, start=made.start + before, span=(made.span[0] + before, made.span[1] + before))
            seen["known"] += 1
            got = packed(lambda source, out, at, _, m=moved: (m.pack(source, out, at), at + m.size)[1], lambda array: array)
            seen["wrong by the copy"] += got != want[0]
            if made.reversible:
                seen["reversible"] += 1
                back = unpacked(lambda source, at, target, _, m=moved: m.unpack(source, target, at), lambda array: array)
                seen["wrong by the copy"] += back != want[1]
        handle.Free()
    return {**dict.fromkeys(("types", "known", "reversible", "wrong by the calls", "wrong by the copy"), 0), **seen}


def copies_made(layer: bool, sizes: list[list[int]], **_: Any) -> dict[str, Any]:
    """Strided copies of one Pack, and the contiguous pieces that a library would take one at a time."""
    MPI, found = _module(layer), {}
    named: dict[str, Datatype] = {f"{size} B in blocks of {block} B": rows(size, block, 512) for size, block in sizes}
    named["box, by hindexed"] = boxes()["hindexed"]
    for name, described in named.items():
        handle = build(described, MPI).Commit()
        memory, packed = np.zeros(handle.Get_extent()[1], np.uint8), np.zeros(handle.Get_size(), np.uint8)
        before = MPI.layer.LAYER.counts["pack"] if layer else 0
        handle.Pack(memory, packed, 0, MPI.COMM_SELF)
        after = MPI.layer.LAYER.counts["pack"] if layer else 0
        found[name] = {"copies": after - before, "pieces": blocks(offsets(described))}
        handle.Free()
    return found


def transposed(layer: bool, **_: Any) -> int:
    """Numbers that are wrong when a matrix goes by columns from a rank under the layer to one without it, and back by rows."""
    from mpi4py import MPI as real

    rank = real.COMM_WORLD.rank
    MPI, n, m = _module(layer and rank == 0), 24, 40
    comm, matrix = MPI.COMM_WORLD, np.arange(24.0 * 40).reshape(n, m)
    columns = build(Vector(m, 1, 8, Vector(n, 1, 8 * m, DOUBLE)), MPI).Commit()
    if rank == 0:
        comm.Send([matrix, 1, columns], 1)
        back = np.zeros_like(matrix)
        comm.Recv([back, 1, columns], 1)
        wrong = (back != matrix).sum()
    else:
        got = np.zeros((m, n))
        comm.Recv([got, n * m, MPI.DOUBLE], 0)
        comm.Send([np.ascontiguousarray(matrix.T), n * m, MPI.DOUBLE], 0)
        wrong = (got != matrix.T).sum()
    columns.Free()
    return int(real.COMM_WORLD.allreduce(int(wrong)))


def pack(sizes: list[int], blocks: list[int], objects: list[int], memory: int, repeats: int, layer: bool, **_: Any) -> list[Any]:
    """Seconds of Pack by the library, by NumPy and under the layer, over the two-dimensional sweep."""
    MPI, found = _module(layer), []
    for size in sizes:
        for block in blocks:
            for count in objects:
                described = rows(size, block, 512)
                if block > size or described.extent * count > memory:
                    continue
                handle = build(described, MPI).Commit()
                source = np.full(described.extent * count, 1, np.uint8)
                packed = np.full(size * count, 2, np.uint8)
                view = np.lib.stride_tricks.as_strided(source, (count, size // block, block), (described.extent, 512, 1))
                library = MPI.real.Datatype.Pack if layer else type(handle).Pack
                seconds = median_seconds(
                    {
                        "library": partial(library, handle, source, packed, 0, MPI.COMM_SELF),
                        "numpy": partial(np.ascontiguousarray, view),
                        "layer": partial(handle.Pack, source, packed, 0, MPI.COMM_SELF),
                    },
                    repeats,
                    least=2e-4,
                )
                found.append({"size": size, "block": block, "objects": count, **seconds})
                handle.Free()
    return found


def methods(points: list[list[int]], samples: int, **_: Any) -> list[Any]:
    """Seconds of a message by each method, measured and modelled. Two ranks."""
    from papers.tempi.iid import Sampling
    from papers.tempi.measure_system import MPI, Bench, Rows, ways

    bench = Bench(MPI.COMM_WORLD, Sampling(samples=samples, rounds=1, least=1e-4, permutations=1000))
    model = perf.read(perf.folder() / "perf.json", MPI.Get_library_version())
    assert model is not None
    found = []
    for size, block in points:
        data = Rows(size, block)
        pairs = ways(bench.comm, data)
        # In turns, so that a slow moment falls on all of them.
        rounds = [{name: bench.pingpong(*pair) for name, pair in pairs.items()} for _ in range(3)]
        taken = {name: float(np.median([each[name] for each in rounds])) for name in pairs}
        modelled = {name: model.send(name, size, block) for name in pairs}
        found.append({"size": size, "block": block, "measured": taken, "modelled": modelled})
        data.free()
    return found


def commit(repeats: int, **_: Any) -> dict[str, Any]:
    """Seconds of building, committing and freeing each box, by the library and under the layer."""
    MPI = _module(True)

    below = MPI.real.Datatype

    def once(described: Datatype, commit: Callable[[Any], Any]) -> None:
        handle = build(described, MPI)
        commit(handle)
        handle.Free()

    def times(**calls: Callable[[], Any]) -> dict[str, float]:
        return median_seconds(calls, repeats, least=2e-3)

    found = {
        name: times(library=partial(once, described, below.Commit), layer=partial(once, described, MPI.Datatype.Commit))
        for name, described in boxes().items()
    }
    kind, a, b = build(Contiguous(512, BYTE), MPI).Commit(), np.zeros(512, np.uint8), np.zeros(512, np.uint8)
    found["call"] = times(
        library=partial(below.Pack, kind, a, b, 0, MPI.COMM_SELF), layer=partial(kind.Pack, a, b, 0, MPI.COMM_SELF)
    )
    return found


def _module(layer: bool) -> Any:
    if layer:
        return install(os.environ)
    from mpi4py import MPI

    return MPI


TASKS: dict[str, Callable[..., Any]] = {
    "bytes": bytes_, "copies_made": copies_made, "transposed": transposed, "pack": pack,
    "methods": methods, "commit": commit,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    task, options, answer = arguments
    result = TASKS[task](**json.loads(options))
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        Path(answer).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
