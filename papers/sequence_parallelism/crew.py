"""Ranks of several numbers, each started when first asked for and kept until the end of a measurement."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from common.distributed import Ranks


class Crew:
    """``crew.run(4, function, *arguments)`` is ``Ranks(4).run(function, *arguments)``, without a start for every call."""

    def __init__(self, timeout: float = 600.0) -> None:
        self._timeout = timeout
        self._ranks: dict[int, Ranks] = {}

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if size not in self._ranks:
            self._ranks[size] = Ranks(size, self._timeout)
        return self._ranks[size].run(function, *arguments)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each in self._ranks.values():
            each.close()
