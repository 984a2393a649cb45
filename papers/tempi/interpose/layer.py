"""What the layer knows: switches, the datatypes that were committed, buffers, counters, and how a message goes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mpi4py import MPI

from papers.tempi import perf
from papers.tempi.buffers import Slabs
from papers.tempi.copies import Copy, copy
from papers.tempi.handles import decode
from papers.tempi.ir import Dense, StridedBlock, Tree, canonical, ordered, strided_block, translate
from papers.tempi.model import METHODS, Model

SMALL, SHORT = 4096, 16
"""The rule of thumb without ``perf.json``: below these bytes of data or of a block the library's own way is taken."""


UNFIT = (ValueError, TypeError, BufferError)
"""What NumPy raises at a buffer that a copy does not fit; such calls go to the library."""


@dataclass(frozen=True)
class Settings:
    """The environment switches, named as the authors' are.

    ``method`` is "auto", or the one method that every message of a known datatype takes.
    ``order`` "sorted" packs in the order of the canonical form, as the authors do: a fault, kept to show what it breaks.
    """

    disable: bool = False
    pack: bool = True
    commit: bool = True
    method: str = "auto"
    order: str = "type map"

    @classmethod
    def of(cls, environment: dict[str, str] | Any = os.environ) -> Settings:
        """TEMPI_DISABLE, TEMPI_NO_PACK, TEMPI_NO_TYPE_COMMIT, TEMPI_DATATYPE_ONESHOT, _DEVICE, _LIBRARY, _AUTO; TEMPI_ORDER_SORTED."""
        names = {"ONESHOT": "oneshot", "DEVICE": "staged", "LIBRARY": "library", "AUTO": "auto"}
        forced = [method for name, method in names.items() if f"TEMPI_DATATYPE_{name}" in environment]
        if len(forced) > 1:
            raise ValueError(f"TEMPI_DATATYPE_* is set for {' and '.join(forced)}; set one of {', '.join(names)}")
        return cls(
            disable="TEMPI_DISABLE" in environment,
            pack="TEMPI_NO_PACK" not in environment,
            commit="TEMPI_NO_TYPE_COMMIT" not in environment,
            method=forced[0] if forced else "auto",
            order="sorted" if "TEMPI_ORDER_SORTED" in environment else "type map",
        )


@dataclass
class Entry:
    """A committed datatype: its tree, its canonical form, and the copies that were asked for.

    ``copies`` are by number of objects; ``packing`` and ``unpacking`` by bytes of the buffer that MPI_Pack is given, None where
    the call is better left to the library.
    """

    tree: Tree
    extent: int
    canonical: StridedBlock
    normal: Any = ordered
    copies: dict[int, Copy] = field(default_factory=dict)
    packing: dict[int, Copy | None] = field(default_factory=dict)
    unpacking: dict[int, Copy | None] = field(default_factory=dict)

    def copy(self, count: int) -> Copy:
        if count not in self.copies:
            _bounded(self.copies)[count] = copy(self.tree, self.extent, count, self.normal)
        return self.copies[count]


def _bounded(kept: dict[int, Any]) -> dict[int, Any]:
    """The dictionary, emptied where a program never asks twice for the same."""
    if len(kept) >= 256:
        kept.clear()
    return kept


class Layer:
    """The state of one process.

    Attributes:
        types: handle -> entry of every committed datatype with a canonical form that is not one dense piece.
        counts: strided copies made ("pack", "unpack"), copies out of and into the arena ("d2h", "h2d"), messages by method.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.types: dict[int, Entry] = {}
        self.slabs, self.arena = Slabs(), Slabs()
        self.counts: Counter[str] = Counter()
        self.methods: dict[tuple[int, int], str] = {}

    @cached_property
    def model(self) -> Model | None:
        """The machine's tables, read when they are first needed."""
        return perf.read(perf.folder() / "perf.json", MPI.Get_library_version())

    def commit(self, datatype: Any) -> Entry | None:
        """Translate a datatype; one without a canonical form, or already dense, is left to the library."""
        self.types.pop(datatype.handle, None)
        described = decode(datatype) if self.settings.commit else None
        tree = None if described is None else translate(described)
        if described is None or tree is None:
            return None
        if ordered(tree) == Dense(0, described.extent):
            return None
        known = strided_block(canonical(tree), described.extent)
        entry = Entry(tree, described.extent, known, canonical if self.settings.order == "sorted" else ordered)
        self.types[datatype.handle] = entry
        return entry

    def free(self, handle: int) -> None:
        """Forget a handle before the library reuses it."""
        self.types.pop(handle, None)

    def method(self, made: Copy) -> str:
        """How a message of these bytes goes."""
        if self.settings.method != "auto":
            return self.settings.method
        key = made.size, made.block
        if key not in self.methods:
            self.methods[key] = self.model.best(*key) if self.model else METHODS[self._thumb(made)]
        return self.methods[key]

    def packs(self, entry: Entry, direction: str, memory: Any) -> Copy | None:
        """The copy that MPI_Pack or MPI_Unpack of a buffer should make, None where it is better left to the library.

        As in mpi4py, the objects are as many as the buffer has whole extents.
        """
        try:
            size = memoryview(memory).nbytes
        except TypeError:
            return None
        kept = entry.packing if direction == "pack" else entry.unpacking
        if size not in kept:
            made = entry.copy(size // entry.extent) if self.settings.pack and 0 < entry.extent <= size else None
            fit = made is not None and (direction == "pack" or made.reversible) and self.gains(made, direction)
            _bounded(kept)[size] = made if fit else None
        return kept[size]

    def gains(self, made: Copy, direction: str) -> bool:
        """Whether a copy by itself is faster than the library's."""
        if self.settings.method != "auto":
            return self.settings.method != "library"
        return self.model.packs(made.size, made.block, direction) if self.model else self._thumb(made)

    @staticmethod
    def _thumb(made: Copy) -> bool:
        return made.size >= SMALL and made.block >= SHORT

    def gather(self, made: Copy, source: Any, method: str) -> Any:
        """Pack into a buffer for the library to send; give it back to ``slabs`` afterwards."""
        buffer = self.slabs.take(made.size)
        try:
            if method == "staged":
                with self.arena.lend(made.size) as device:
                    made.pack(source, device)
                    buffer[: made.size] = device[: made.size]
                self.counts["d2h"] += 1
            else:
                made.pack(source, buffer)
        except BaseException:
            self.slabs.give(buffer)
            raise
        self.counts["pack"] += 1
        return buffer

    def scatter(self, made: Copy, buffer: Any, target: Any, size: int, method: str) -> None:
        """Put ``size`` received bytes in their places."""
        if size < made.size:
            made.unpack_part(buffer, target, size)
        elif method == "staged":
            with self.arena.lend(made.size) as device:
                device[: made.size] = buffer[: made.size]
                made.unpack(device, target)
            self.counts["h2d"] += 1
        else:
            made.unpack(buffer, target)
        self.counts["unpack"] += 1


LAYER = Layer(Settings())
"""The layer of this process; :func:`papers.tempi.interpose.install` starts it anew."""
