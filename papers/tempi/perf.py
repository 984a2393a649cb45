"""``perf.json``: what was measured on this machine, kept for the layer, and refused where it is not of this machine."""

from __future__ import annotations

import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import write_whole
from papers.tempi.model import Model

FORMAT = 2


def folder() -> Path:
    """TEMPI_CACHE_DIR, or the user's cache."""
    given = os.environ.get("TEMPI_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tempi"


def fingerprint(library: str) -> dict[str, Any]:
    """What the tables hold for; ``library`` is MPI_Get_library_version."""
    return {"format": FORMAT, "library": library.strip().rstrip("\0"), "machine": platform.machine(), "cores": os.cpu_count()}


def write(path: Path, model: Model, library: str, notes: dict[str, Any] | None = None) -> None:
    """Write the file whole or not at all."""
    grids = {"sizes": model.sizes.tolist(), "blocks": model.blocks.tolist(), "lengths": model.lengths.tolist()}
    tables = {name: table.tolist() for name, table in model.tables.items()}
    whole = {"of": fingerprint(library), **grids, "tables": tables, "call": model.call, "notes": notes or {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(whole).encode())


def read(path: Path, library: str) -> Model | None:
    """The model in a file; a missing, broken or foreign file gives a warning and None."""
    again = "methods are chosen by a rule of thumb; run python -m papers.tempi.measure_system under mpiexec -n 2"
    try:
        whole = json.loads(path.read_text())
        sizes, blocks, lengths = (np.asarray(whole[name], float) for name in ("sizes", "blocks", "lengths"))
        tables = {name: np.asarray(table, float) for name, table in whole["tables"].items()}
        found = Model(sizes, blocks, lengths, tables, call=float(whole["call"]))
        _check(found)
    except FileNotFoundError:
        warnings.warn(f"{path} does not exist; {again}", stacklevel=2)
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} cannot be read ({type(error).__name__}: {error}); {again}", stacklevel=2)
        return None
    if whole.get("of") != fingerprint(library):
        warnings.warn(f"{path} was measured with another library or machine; {again}", stacklevel=2)
        return None
    return found


def _check(model: Model) -> None:
    square = (model.sizes.size, model.blocks.size)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("pack", "unpack", "library_pack", "library_unpack", "library_send"), square
    )
    shapes |= dict.fromkeys(("pingpong", "d2h", "h2d"), (model.lengths.size,))
    for name, shape in shapes.items():
        table = model.tables[name]
        if table.shape != shape or min(shape) < 2 or not (np.isfinite(table).all() and (table > 0).all()):
            raise ValueError(f"table {name} has shape {table.shape} or times that are no positive numbers; wanted {shape}")
    for grid in (model.sizes, model.blocks, model.lengths):
        if not (np.diff(grid) > 0).all():
            raise ValueError("a grid does not rise")
