"""Speed on this machine: the optimizer's three-stage pipeline over real files, and layers in tiles."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.ledger import Value
from common.meter import median_seconds
from common.offload import FileTier, Pool, Slots
from common.runner import Run
from papers.zero_infinity import optimizer
from papers.zero_infinity.config import Config
from papers.zero_infinity.fetch import weight_name
from papers.zero_infinity.partition import Layout, Unit
from papers.zero_infinity.reduce import gradient_name
from papers.zero_infinity.rule import Adam
from papers.zero_infinity.store import FileStore
from papers.zero_infinity.tiling_torch import TiledLinear

DTYPES = (torch.float32, torch.float32)


def pipeline(config: Config, run: Run) -> dict[str, Value]:
    """Time of an optimizer step that waits for each read and write, over that of one that does not."""
    if run.busy:
        return {"overlap": run.busy}
    chunk = config.swap_chunk
    units = [Unit(i, f"layer {i}", (chunk,)) for i in range(config.swap_chunks)]
    size = optimizer.record_bytes(chunk, *DTYPES)
    record = torch.rand(3, chunk)
    gradient = torch.rand(chunk)
    adam = Adam()
    update = median_seconds({"update": lambda: adam.update(record[0], gradient, record[1], record[2], 2)}, 9)["update"]
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder:
        # A disk that is faster than the update hides behind it whatever one does.
        store = FileStore(Path(folder), bytes_per_second=size / update)
        slots = Slots(Pool(optimizer.DEPTH * (size + 64)), optimizer.DEPTH, size)
        layout = Layout(1, chunk)
        _fill(store, units, slots)

        def step(overlap: bool) -> None:
            optimizer.step_all(units, layout, 0, adam, 1, store, store, slots, DTYPES, overlap)
            store.commit(store.step + 1, {})

        with run.timing():
            seconds = median_seconds(
                {"waiting": lambda: step(False), "overlapping": lambda: step(config.overlap), "memmap": _memmap(folder, config)},
                5,
            )
        store.close()
        why = store.files.why_not
    run.keep("pipeline", {"seconds": seconds, "update of a chunk": update, "page cache": why or "not used"})
    return {"overlap": run.busy or seconds["waiting"] / seconds["overlapping"]}


def tiled(config: Config, run: Run) -> dict[str, Value]:
    """Time of forward and backward of a layer in tiles over the layer's whole."""
    if run.busy:
        return {"tiled_time": run.busy}
    whole = torch.nn.Linear(1024, 1024)
    tiles = TiledLinear.of(whole, config.splits, config.splits)
    x, gradient = torch.rand(512, 1024, requires_grad=True), torch.rand(512, 1024)

    def once(layer: torch.nn.Module) -> None:
        layer(x).backward(gradient)

    with run.timing():
        seconds = median_seconds({"whole": lambda: once(whole), "tiles": lambda: once(tiles)}, 9, 2)
    run.keep("tiled", seconds)
    return {"tiled_time": run.busy or seconds["tiles"] / seconds["whole"]}


def file_tier(config: Config, run: Run) -> dict[str, Value]:
    """Bytes per second of the file tier and of numpy.memmap, written and read back; for the record."""
    if run.busy:
        return {}
    size = 4 * config.swap_chunk * 16
    data, out = np.random.default_rng(0).integers(0, 256, (2, size), np.uint8)
    with tempfile.TemporaryDirectory(dir=run.folder, prefix="tier-") as folder, FileTier(folder, threads=2) as files:
        mapped = np.memmap(Path(folder) / "mapped", np.uint8, "w+", shape=size)

        def through_map() -> None:
            mapped[:] = data
            mapped.flush()
            out[:] = mapped

        def through_tier() -> None:
            files.write("x", data).finish()
            files.read("x", out).finish()

        with run.timing():
            seconds = median_seconds({"file tier": through_tier, "memmap": through_map}, 3)
    run.keep("bytes per second", {name: 2 * size / each for name, each in seconds.items()})
    return {}


def _fill(store: FileStore, units: list[Unit], slots: Slots) -> None:
    rng = np.random.default_rng(0)
    for unit in units:
        count = unit.count
        for name, numbers, kept in (
            (weight_name(unit.index, 0), count, True),
            (optimizer.state_name(unit.index, 0), 3 * count, True),
            (gradient_name(unit.index, 0), count, False),
        ):
            store.put(name, rng.random(numbers, np.float32).view(np.uint8), kept).finish()
    store.commit(0, {})


def _memmap(folder: str, config: Config) -> Any:
    """The same step as one would write it over numpy.memmap, at the disk's own speed and through the page cache."""
    count, adam = config.swap_chunk * config.swap_chunks, Adam()
    arrays = [np.memmap(Path(folder) / f"{i}.map", np.float32, "w+", shape=count) for i in range(5)]
    for array in arrays:
        array[:] = 0.5

    def step() -> None:
        for start in range(0, count, config.swap_chunk):
            piece = slice(start, start + config.swap_chunk)
            parameter, mean, square, gradient, weight = (torch.from_numpy(array[piece]) for array in arrays)
            adam.update(parameter, gradient, mean, square, 1)
            weight.copy_(parameter)
        for array in arrays:
            array.flush()

    return step
