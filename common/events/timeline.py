"""What a machine did when: spans of work on named resources, with picture, shares and a trace file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Time = int | float


@dataclass(frozen=True)
class Span:
    """One piece of work on one resource, from start to end; ``arguments`` (bytes, row, ...) are JSON values."""

    resource: str
    name: str
    start: Time
    end: Time
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.start <= self.end:
            raise ValueError(f"{self.name} on {self.resource} ends at {self.end}, before its start at {self.start}")


class Timeline:
    """A list of spans.

    Args:
        unit: seconds of one unit of time: 1e-9 if spans count ns.
    """

    def __init__(self, spans: Iterable[Span] = (), unit: float = 1.0) -> None:
        if not unit > 0:
            raise ValueError(f"unit is {unit}; wanted the seconds of one unit of time, such as 1e-9")
        self.spans = list(spans)
        self.unit = unit

    def add(self, resource: str, name: str, start: Time, end: Time, **arguments: Any) -> Span:
        span = Span(resource, name, start, end, arguments)
        self.spans.append(span)
        return span

    @property
    def resources(self) -> list[str]:
        """In order of their first span."""
        return list(dict.fromkeys(span.resource for span in self.spans))

    @property
    def finish(self) -> Time:
        """The end of the last span; 0 for none."""
        return max((span.end for span in self.spans), default=0)

    def busy(self, *resources: str) -> Time:
        """Time in which all of these resources are at work at once; of one resource its busy time, overlaps counted once."""
        edges: list[tuple[Time, int, str]] = []
        for span in self.spans:
            if span.resource in resources:
                edges += [(span.start, 1, span.resource), (span.end, -1, span.resource)]
        at_work = dict.fromkeys(resources, 0)
        total: Time = 0
        since: Time = 0
        for moment, change, resource in sorted(edges):
            if all(at_work.values()):
                total += moment - since
            at_work[resource] += change
            since = moment
        return total

    def shares(self) -> dict[str, float]:
        """Busy part of the time from 0 to the finish, by resource."""
        return {each: self.busy(each) / self.finish if self.finish else 0.0 for each in self.resources}

    def overlaps(self, resource: str | None = None) -> list[tuple[Span, Span]]:
        """Pairs of neighbouring spans of one resource that run at once, which a resource that serves one at a time forbids."""
        found = []
        for each in self.resources if resource is None else [resource]:
            longest = None
            for span in sorted((s for s in self.spans if s.resource == each), key=lambda s: (s.start, s.end)):
                if longest is not None and span.start < longest.end and span.start < span.end:
                    found.append((longest, span))
                if longest is None or span.end > longest.end:
                    longest = span
        return found

    def gantt(self, axes: Any, resources: Sequence[str] = (), unit: float = 1e-6) -> None:
        """Draw a row for each resource (in the order given) and a colour for each name on matplotlib axes, in ``unit`` seconds."""
        from common.figures import COLOURS

        shown, scale = list(resources) or self.resources, self.unit / unit
        names = list(dict.fromkeys(span.name for span in self.spans if span.resource in shown))
        for row, resource in enumerate(shown):
            for name in names:
                bars = [
                    (s.start * scale, (s.end - s.start) * scale) for s in self.spans if s.resource == resource and s.name == name
                ]
                colour = COLOURS[names.index(name) % len(COLOURS)]
                axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour, linewidth=0)
        for name in names:
            axes.plot([], [], "s", color=COLOURS[names.index(name) % len(COLOURS)], label=name)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.set_xlabel("time [" + {1.0: "s", 1e-3: "ms", 1e-6: "µs", 1e-9: "ns"}.get(unit, f"{unit:g} s") + "]")
        axes.legend(ncols=len(names), loc="upper left", bbox_to_anchor=(0, -0.18), handlelength=1)

    def chrome(self) -> dict[str, Any]:
        """The Trace Event Format, which Perfetto and chrome://tracing open: complete events, times in us.

        Beside its arguments each event keeps its own times in whole units (``_start``, ``_end``), as us of a fraction round.
        """
        lanes = {resource: i for i, resource in enumerate(self.resources)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": 0, "tid": i, "name": "thread_name", "args": {"name": resource}} for resource, i in lanes.items()
        ]
        scale = self.unit * 1e6
        events += [
            {
                "ph": "X",
                "pid": 0,
                "tid": lanes[s.resource],
                "name": s.name,
                "ts": s.start * scale,
                "dur": (s.end - s.start) * scale,
                "args": {**s.arguments, "_start": s.start, "_end": s.end},
            }
            for s in self.spans
        ]
        return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"unit": self.unit}}

    def write(self, path: Path) -> None:
        """Write :meth:`chrome` as JSON."""
        Path(path).write_text(json.dumps(self.chrome()), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """Read a trace file: ours come back exactly, of others the complete events, in us.

        Raises:
            ValueError: the file holds no trace events.
        """
        try:
            whole = json.loads(Path(path).read_text(encoding="utf-8"))
            events = whole if isinstance(whole, list) else whole["traceEvents"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no trace: wanted JSON with a list traceEvents ({error})") from error
        names: dict[Any, str] = {}
        for event in events:
            if event.get("ph") == "M" and event.get("name") == "thread_name":
                names[event.get("pid"), event.get("tid")] = event["args"]["name"]
        unit = 1e-6 if isinstance(whole, list) else whole.get("otherData", {}).get("unit", 1e-6)
        line = cls(unit=unit)
        for event in events:
            if event.get("ph") != "X":
                continue
            arguments = dict(event.get("args", {}))
            start = arguments.pop("_start", event["ts"])
            end = arguments.pop("_end", event["ts"] + event.get("dur", 0))
            key = event.get("pid"), event.get("tid")
            line.spans.append(Span(names.get(key, f"{key[0]}/{key[1]}"), event["name"], start, end, arguments))
        return line
