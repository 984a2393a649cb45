"""What moved when: a record of every move, its byte counters, and the picture of it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.events import Span, Timeline
from common.figures import COLOURS


@dataclass(frozen=True)
class Move:
    """One piece of work: a copy, a read, a write, or a computation (0 bytes). Times are seconds since the trace began."""

    name: str
    lane: str
    bytes: int
    start: float
    end: float


class Trace:
    """A list of moves that several threads may add to."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self._zero = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._zero

    def add(self, name: str, lane: str, size: int, start: float, end: float | None = None) -> None:
        self.moves.append(Move(name, lane, size, start, self.now() if end is None else end))

    @contextlib.contextmanager
    def span(self, name: str, lane: str = "compute", size: int = 0) -> Iterator[None]:
        """Record the block as one move of a lane."""
        start = self.now()
        try:
            yield
        finally:
            self.add(name, lane, size, start)

    def bytes(self) -> dict[str, int]:
        """Bytes moved, by lane."""
        counted: Counter[str] = Counter()
        for move in self.moves:
            counted[move.lane] += move.bytes
        return dict(counted)

    def counts(self) -> dict[str, int]:
        """Number of moves, by lane."""
        return dict(Counter(move.lane for move in self.moves))

    @property
    def timeline(self) -> Timeline:
        """The moves as spans in seconds, for shares, overlaps and a trace file that Perfetto opens."""
        return Timeline(Span(move.lane, move.name, move.start, move.end, {"bytes": move.bytes}) for move in self.moves)

    def busy(self, *lanes: str) -> float:
        """Seconds in which all of these lanes were at work at once; one lane: its busy time."""
        return float(self.timeline.busy(*lanes))

    def clear(self) -> None:
        self.moves.clear()
        self._zero = time.perf_counter()

    def rows(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [dataclasses.asdict(move) for move in self.moves]

    def gantt(self, axes: Any, lanes: Sequence[str] = (), unit: float = 1e-3) -> None:
        """Draw one bar for each move on matplotlib axes, a row for each lane (in the order given), time in ``unit`` seconds."""
        shown = list(lanes) or list(dict.fromkeys(move.lane for move in self.moves))
        for row, lane in enumerate(shown):
            bars = [(move.start / unit, (move.end - move.start) / unit) for move in self.moves if move.lane == lane]
            axes.broken_barh(bars, (row - 0.38, 0.76), facecolors=COLOURS[row % len(COLOURS)], edgecolors="white", linewidth=0.4)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.set_xlabel("time [ms]" if unit == 1e-3 else f"time [{unit:g} s]")
