"""Tables of latencies: published ones as data, and this machine's, really measured."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from common import UserError, meter
from common.checkpoint import write_whole
from common.machine import machine, versions


class LatencyTable(Mapping[str, float]):
    """Milliseconds of each operation, by key; a network's latency is the sum over its operations.

    Raises:
        ValueError: a latency that is no number or negative.
    """

    def __init__(self, milliseconds: Mapping[str, float | int], source: str) -> None:
        for key, value in milliseconds.items():
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"the latency of {key!r} is {value!r}; wanted milliseconds, finite and not negative ({source})")
        self._milliseconds, self.source = {key: float(value) for key, value in milliseconds.items()}, source

    @classmethod
    def measured(
        cls,
        functions: Mapping[str, Callable[[], object]],
        what: str,
        file: Path | None = None,
        *,
        repeats: int = 9,
        least: float | int = 2e-3,
        track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> LatencyTable:
        """Time one call of each function here: the median of ``repeats`` measurements of ``least`` seconds or more.

        Args:
            functions: by key; all that is equal in cost should have one key.
            what: how it is run ("torch, 1 thread, batch 1"); latencies of another are not taken from the file.
            file: YAML that keeps latencies of this machine, these versions and ``what``; only new keys are timed.
            track: shows progress over the batches of functions.
        """
        known = _read(file, what) if file else {}
        missing = [key for key in functions if key not in known]
        # In batches: functions of a batch take turns, so that a slow moment of the machine falls on all of them.
        for start in track(range(0, len(missing), _BATCH)):
            batch = {key: functions[key] for key in missing[start : start + _BATCH]}
            found = meter.median_seconds(batch, repeats, least=float(least))
            known |= {key: 1e3 * seconds for key, seconds in found.items()}
            if file:
                _write(file, what, known)
        return cls({key: known[key] for key in functions}, f"{what}, {machine()['cpu']}")

    def total(self, keys: Iterable[str]) -> float:
        """Predicted milliseconds of a network: the sum over its operations."""
        return sum(self[key] for key in keys)

    def __getitem__(self, key: str) -> float:
        try:
            return self._milliseconds[key]
        except KeyError:
            close = difflib.get_close_matches(key, self._milliseconds, 1)
            hint = f"; the nearest key is {close[0]!r}" if close else ""
            raise KeyError(f"no latency of {key!r} in the table of {self.source}{hint}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._milliseconds)

    def __len__(self) -> int:
        return len(self._milliseconds)


_BATCH = 16


def fingerprint() -> str:
    """A short hash of the machine and the versions that latencies depend on."""
    return hashlib.sha256(json.dumps([machine(), versions()], sort_keys=True).encode()).hexdigest()[:12]


def _read(file: Path, what: str) -> dict[str, float]:
    """The latencies in a file that were measured like this; none if it is missing or of another machine."""
    if not file.exists():
        return {}
    try:
        whole = yaml.safe_load(file.read_text())
        mine = whole["fingerprint"] == fingerprint() and whole["what"] == what
        return dict(LatencyTable(whole["milliseconds"], str(file))) if mine else {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is no table of latencies ({error}); delete it to measure again") from error


def _write(file: Path, what: str, milliseconds: dict[str, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {"fingerprint": fingerprint(), "cpu": machine()["cpu"], "what": what, "milliseconds": milliseconds}
    write_whole(file, yaml.safe_dump(whole, sort_keys=False).encode())
