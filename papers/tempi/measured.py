"""What is measured by starting MPI programs; each function gives the values of some claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.ledger import Value
from common.runner import Run
from papers.tempi import perf, ranks
from papers.tempi.config import Config, Interpolation, Method, Order
from papers.tempi.model import Model, linear

LIMIT = 600.0
"""Seconds after which a started program is ended."""


def unchanged(config: Config, run: Run) -> dict[str, Value]:
    """Bytes of random types, of halos, and of a message to a rank without the layer."""
    forced = {"TEMPI_DATATYPE_ONESHOT": "", **_order(config)}
    bytes_ = ranks.ask(
        "bytes", 1, {"seed": config.seed, "types": config.types, "layer": config.layer}, timeout=LIMIT, environment=forced
    )
    run.keep("bytes", bytes_)
    options: dict[str, Any] = {
        "size": config.halo_size, "radius": config.halo_radius, "quantities": config.halo_quantities, "steps": 1,
    }  # fmt: skip
    plain = ranks.halo(config.halo_ranks, layer=False, timeout=LIMIT, **options)
    halos = {
        "halo": ranks.halo(config.halo_ranks, layer=config.layer, timeout=LIMIT, environment=forced, **options),
        "halo, half the ranks": ranks.halo(
            config.halo_ranks, layer=config.layer, half=True, timeout=LIMIT, environment=forced, **options
        ),
    }
    return {
        "unchanged": {
            "pack or unpack": bytes_["wrong by the copy"],
            "calls": bytes_["wrong by the calls"],
            **{name: each["wrong"] + (each["digest"] != plain["digest"]) for name, each in halos.items()},
            "transposed message": ranks.ask("transposed", 2, {"layer": config.layer}, timeout=LIMIT, environment=forced),
        }
    }


def copies(config: Config, run: Run) -> dict[str, Value]:
    largest = config.copies[-1]
    options = {"layer": config.layer, "sizes": [[size, block] for size in config.copies for block in (1, 64)]}
    found = ranks.ask("copies_made", 1, options, timeout=LIMIT, environment={"TEMPI_DATATYPE_ONESHOT": ""})
    run.keep("copies", found)
    names = {f"largest in blocks of {block} B": f"{largest} B in blocks of {block} B" for block in (1, 64)}
    return {"copies": {name: found[key]["copies"] for name, key in {**names, "box by hindexed": "box, by hindexed"}.items()}}


def tables(config: Config, run: Run) -> Model:
    """The machine's tables, measured by two ranks for this run."""
    options = {
        "largest": config.table_bytes, "memory": config.memory, "samples": config.table_samples,
        "rounds": config.table_rounds, "seconds": config.table_seconds,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    path = _cache(run) / "perf.json"
    said = ranks.start(["-m", "papers.tempi.measure_system", *words, "--out", str(path)], 2, timeout=LIMIT)
    run.keep("tables", said.strip().rpartition(": ")[2])
    library = ranks.start(["-c", "from mpi4py import MPI; print(MPI.Get_library_version())"], 1, timeout=60)
    found = perf.read(path, library)
    assert found is not None
    return found


def pack(config: Config, run: Run) -> Value:
    options = {
        "sizes": config.sizes, "blocks": config.blocks, "objects": [1, 2], "memory": config.memory, "repeats": config.repeats,
        "layer": config.layer,
    }  # fmt: skip
    found = ranks.ask("pack", 1, options, timeout=LIMIT, environment=_machine(run))
    run.keep("pack", found)
    ratios = {(each["size"], each["block"], each["objects"]): each["library"] / each["layer"] for each in found}
    large = [ratio for (size, block, _), ratio in ratios.items() if size >= 2**20 and block >= 64]
    return {
        "mean, 1 MiB and more, blocks of 64 B and more": math.exp(statistics.fmean(map(math.log, large))),
        "least of all": min(ratios.values()),
    }


def model_picks(config: Config, run: Run) -> Value:
    points = [[size, block] for size in config.messages for block in config.pieces]
    found = ranks.ask("methods", 2, {"points": points, "samples": config.table_samples}, timeout=LIMIT, environment=_machine(run))
    run.keep("methods", found)
    good = 0
    for each in found:
        modelled: Mapping[str, float] = each["modelled"]
        chosen = min(modelled, key=lambda name: modelled[name]) if config.method is Method.auto else config.method.value
        good += each["measured"][chosen] <= 1.15 * min(each["measured"].values())
    return 100 * good / len(found)


def halo(config: Config, run: Run) -> Value:
    """Medians of the steps of starts in turns."""
    options: dict[str, Any] = {
        "size": config.halo_size, "radius": config.halo_radius, "quantities": config.halo_quantities, "steps": config.halo_steps,
    }  # fmt: skip
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(config.halo_turns):
        for on in (False, True):
            each = ranks.halo(config.halo_ranks, layer=on and config.layer, timeout=LIMIT, environment=_machine(run), **options)
            seconds[on] += each["seconds"]
    medians = {on: statistics.median(values) for on, values in seconds.items()}
    run.keep("halo", {"without": medians[False], "with": medians[True]})
    return medians[False] / medians[True]


def overhead(config: Config, run: Run) -> Value:
    found = ranks.ask("commit", 1, {"repeats": config.repeats}, timeout=LIMIT, environment=_machine(run))
    run.keep("commit", found)
    more = {name: 1e6 * (each["layer"] - each["library"]) for name, each in found.items()}
    contiguous = more.pop("call")
    return {
        "commit, strided": max(value for name, value in more.items() if "hindexed" not in name),
        "commit, indexed": max(value for name, value in more.items() if "hindexed" in name),
        "call, contiguous type": contiguous,
    }


def interpolation_error(config: Config, model: Model) -> float:
    """Median per cent by which the entries of all tables differ from what their neighbours say."""
    errors: list[float] = []
    for table in model.tables.values():
        if table.ndim == 1:
            errors += _left_out(config, model.lengths, table)
        else:
            for column in table.T:
                errors += _left_out(config, model.sizes, column)
            for row in table:
                errors += _left_out(config, model.blocks, row)
    return 100 * statistics.median(errors)


def _left_out(config: Config, grid: np.ndarray, times: np.ndarray) -> list[float]:
    errors = []
    for i in range(1, len(grid) - 1):
        if config.interpolation is Interpolation.lower:
            said = times[i - 1]
        else:
            said = float(linear(np.delete(grid, i), np.delete(times, i), grid[i]))
        errors.append(abs(said - times[i]) / times[i])
    return errors


def _order(config: Config) -> dict[str, str]:
    return {"TEMPI_ORDER_SORTED": ""} if config.order is Order.sorted else {}


def _cache(run: Run) -> Path:
    return run.folder / "machine"


def _machine(run: Run) -> dict[str, str]:
    return {"TEMPI_CACHE_DIR": str(_cache(run))}


TIMED: dict[str, Callable[[Config, Run], Value]] = {
    "pack_here": pack, "model_picks": model_picks, "halo_here": halo, "overhead_here": overhead
}  # fmt: skip
