"""Ranks: processes that are started here, or those that a launcher has started."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from common import UserError

from .group import Group, Traffic, _handle
from .place import Started, started
from .processes import Workers


class Ranks:
    """Ranks that are kept between calls: a second call takes milliseconds, and finds its modules imported.

        with Ranks(4) as ranks:
            results = ranks.run(work, x)      # work(group, x) in each of four processes over gloo

    Where a launcher has started this process among others (:func:`started`), those take the work instead, the first ``size``
    of them, and every one returns all results. After an error the ranks are gone; the next call starts others.

    Args:
        size: how many.
        timeout: seconds for every wait within a collective, and for a call that names no other.

    Raises:
        ValueError: no ranks.
        UserError: more ranks than the launcher has started.
    """

    def __init__(self, size: int, timeout: float | int = 120.0) -> None:
        if size < 1:
            raise ValueError(f"ranks is {size}; wanted at least one")
        self.size, self.timeout, self.place = size, timeout, started()
        if self.place and size > self.place.size:
            raise UserError(f"{size} ranks are wanted and {self.place.size} were started; start {size}, or ask for fewer")
        self._workers: Workers | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float | int | None = None) -> list[Any]:
        """Call ``function(group, *arguments)`` in every rank and return what each returned, by rank.

        Args:
            function: of a module that can be imported (no lambda, not of ``__main__`` in a notebook).
            arguments: pickled for every rank; tensors are copied.

        Raises:
            RankError: a rank raised, died or overran; all have been ended.
        """
        if self.place:
            return _join(self.place, self.size, self.timeout, function, arguments)
        if self._workers is None or not self._workers.alive:
            self._start(function)
        assert self._workers is not None
        each = [(function, rank, self.size, self.timeout, arguments) for rank in range(self.size)]
        return self._workers.call(_work, each, timeout or self.timeout)

    def close(self) -> None:
        """End the ranks."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _start(self, function: Callable[..., Any]) -> None:
        self.close()
        # The first function's module is loaded once, by the fork server, and not by every rank.
        self._workers = Workers(self.size, ("torch", "torch.distributed", __name__, function.__module__))
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        # A file needs no free port, so any number of runs can start at once.
        meeting = f"file://{Path(self._folder.name) / 'meeting'}"
        try:
            self._workers.call(_meet, [(rank, self.size, meeting, self.timeout) for rank in range(self.size)], self.timeout)
        except BaseException:
            self.close()
            raise


class Crew:
    """Ranks of several numbers, each started when first asked for and kept: ``crew.run(4, work, x)`` is ``Ranks(4).run(work, x)``."""

    def __init__(self, timeout: float | int = 120.0) -> None:
        self.timeout = timeout
        self._ranks: dict[int, Ranks] = {}

    def run(self, size: int, function: Callable[..., Any], *arguments: Any, timeout: float | int | None = None) -> list[Any]:
        """As :meth:`Ranks.run`, in ``size`` ranks."""
        if size not in self._ranks:
            self._ranks[size] = Ranks(size, self.timeout)
        return self._ranks[size].run(function, *arguments, timeout=timeout)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each in self._ranks.values():
            each.close()


def launch(function: Callable[..., Any], ranks: int, *arguments: Any, timeout: float | int = 120.0) -> list[Any]:
    """Call ``function(group, *arguments)`` in ``ranks`` processes; :class:`Ranks` for one call.

    Raises:
        RankError: a rank raised, died or overran; the others have been ended.
        ValueError: no ranks.
    """
    with Ranks(ranks, timeout) as these:
        return these.run(function, *arguments)


def _meet(rank: int, size: int, meeting: str, timeout: float, backend: str = "gloo") -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if size > 1:
        wait = datetime.timedelta(seconds=timeout)
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=wait)


def _work(function: Callable[..., Any], rank: int, size: int, timeout: float, arguments: tuple[Any, ...]) -> Any:
    import torch.distributed as dist

    handle = dist.group.WORLD if size > 1 else None
    group = Group("world", rank, range(size), handle, Traffic(size), timeout=timeout)
    # After an error the process ends at once; leaving the group first would let others fail, and report, before it.
    result = function(group, *arguments)
    group.barrier()  # who leaves early cuts the others' connections
    return result


def _join(place: Started, size: int, timeout: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    """Take part in a call of the first ``size`` of the ranks that a launcher has started."""
    import torch
    import torch.distributed as dist

    device = f"cuda:{place.local}" if torch.cuda.is_available() else "cpu"
    if not dist.is_initialized():
        if device != "cpu":
            torch.cuda.set_device(device)
        _meet(place.rank, place.size, place.meeting, timeout, "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    mine = None
    if place.rank < size:
        handle = dist.group.WORLD if size == place.size else _handle(tuple(range(size)), timeout)
        mine = function(Group("world", place.rank, range(size), handle, Traffic(place.size), device, timeout), *arguments)
    results: list[Any] = [None] * place.size
    dist.all_gather_object(results, mine)
    _all_have_it(place.size, timeout)
    return results[:size]


def _all_have_it(size: int, timeout: float | int) -> None:
    """Wait through the store until all ranks are here: who leaves a collective first, and ends, cuts the connections of the rest."""
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    number = (store.add("launches", 1) - 1) // size
    if store.add(f"launch {number}", 1) == size:
        store.set(f"launch {number} is done", "")
    store.wait([f"launch {number} is done"], datetime.timedelta(seconds=timeout))
