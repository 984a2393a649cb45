"""Messages whose bytes the layer packs and unpacks, and the requests that finish them."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from papers.tempi.interpose import layer
from papers.tempi.interpose.layer import UNFIT


class Request(MPI.Request):
    """mpi4py's Request; one of the layer's messages gives its buffer back, and unpacks it, when it is done."""

    _message: Message | None = None

    def Wait(self, status: Any = None) -> Any:
        if self._message is None:
            return super().Wait(status)
        status = MPI.Status() if status is None else status
        super().Wait(status)
        return self._done(status)

    def Test(self, status: Any = None) -> bool:
        if self._message is None:
            return super().Test(status)
        status = MPI.Status() if status is None else status
        return super().Test(status) and self._done(status)

    @classmethod
    def Waitall(cls, requests: Any, statuses: Any = None) -> Any:
        kept = _statuses(requests, statuses)
        MPI.Request.Waitall(requests, kept)
        return _all_done(requests, kept)

    @classmethod
    def Testall(cls, requests: Any, statuses: Any = None) -> bool:
        kept = _statuses(requests, statuses)
        return MPI.Request.Testall(requests, kept) and _all_done(requests, kept)

    @classmethod
    def Waitany(cls, requests: Any, status: Any = None) -> int:
        status = MPI.Status() if status is None else status
        at = MPI.Request.Waitany(requests, status)
        _some_done(requests, [at], [status])
        return at

    @classmethod
    def Testany(cls, requests: Any, status: Any = None) -> tuple[int, bool]:
        status = MPI.Status() if status is None else status
        at, flag = MPI.Request.Testany(requests, status)
        if flag:
            _some_done(requests, [at], [status])
        return at, flag

    @classmethod
    def Waitsome(cls, requests: Any, statuses: Any = None) -> list[int] | None:
        kept = _statuses(requests, statuses)
        found = MPI.Request.Waitsome(requests, kept)
        _some_done(requests, found or [], kept)
        return found

    @classmethod
    def Testsome(cls, requests: Any, statuses: Any = None) -> list[int] | None:
        kept = _statuses(requests, statuses)
        found = MPI.Request.Testsome(requests, kept)
        _some_done(requests, found or [], kept)
        return found

    def _done(self, status: Any) -> bool:
        message, self._message = self._message, None
        if message is not None:
            message.finish(status)
        return True


def _statuses(requests: Any, statuses: Any) -> list[Any]:
    kept = [] if statuses is None else statuses
    kept.extend(MPI.Status() for _ in range(len(requests) - len(kept)))
    return kept


def _all_done(requests: Any, statuses: Any) -> bool:
    _some_done(requests, range(len(requests)), statuses)
    return True


def _some_done(requests: Any, places: Any, statuses: Any) -> None:
    for at, status in zip(places, statuses, strict=False):
        if 0 <= at < len(requests) and isinstance(requests[at], Request):
            requests[at]._done(status)


class Message:
    """A buffer on its way: packed already (``out``), or to be unpacked when it has come."""

    def __init__(self, made: Any, memory: Any, out: bool) -> None:
        self.made, self.memory, self.out = made, memory, out
        self.method = layer.LAYER.method(made)
        self.buffer = layer.LAYER.gather(made, memory, self.method) if out else layer.LAYER.slabs.take(made.size)
        layer.LAYER.counts[self.method] += 1

    @property
    def spec(self) -> list[Any]:
        return [self.buffer, self.made.size, MPI.PACKED]

    def finish(self, status: Any = None) -> None:
        try:
            if not self.out and not status.Is_cancelled():
                layer.LAYER.scatter(self.made, self.buffer, self.memory, status.Get_count(MPI.BYTE), self.method)
        finally:
            self.drop()

    def drop(self) -> None:
        layer.LAYER.slabs.give(self.buffer)


def start(spec: Any, out: bool) -> Message | None:
    """A message of the layer for [buffer, count, datatype] or [buffer, datatype] of a datatype it knows, else None."""
    if not isinstance(spec, (list, tuple)) or not 2 <= len(spec) <= 3 or not isinstance(spec[-1], MPI.Datatype):
        return None
    entry = layer.LAYER.types.get(spec[-1].handle)
    if entry is None:
        return None
    try:
        if len(spec) == 2:
            count, rest = divmod(memoryview(spec[0]).nbytes, entry.extent)
            if rest:
                return None
        elif isinstance(spec[1], int):
            count = spec[1]
        else:
            return None
        return _fit(entry, count, spec[0], out)
    except (*UNFIT, ZeroDivisionError):
        return None


def _fit(entry: Any, count: int, memory: Any, out: bool) -> Message | None:
    if count < 1:
        return None
    made = entry.copy(count)
    if layer.LAYER.method(made) == "library":
        return None
    if not out and not (made.reversible and made.view(memory).flags.writeable):
        return None
    return Message(made, memory, out)
