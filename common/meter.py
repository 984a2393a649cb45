"""Time and memory, measured so that a comparison means something."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

BUSY_CORES = 0.3
"""Other processes may use this many cores on average before a timing is no longer believed."""


def median_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int = 5, warmup: int = 1, least: float = 0.0
) -> dict[str, float]:
    """Median wall time of one call of each function, in seconds.

    The functions take turns, so that a slow moment of the machine falls on all of them. A call that takes less than
    ``least`` seconds is repeated within one measurement until it has.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    loops: dict[str, int] = {}
    for name, function in functions.items():
        for _ in range(max(warmup, 1)):
            start = time.perf_counter()
            function()
            once = time.perf_counter() - start
        loops[name] = max(1, math.ceil(least / max(once, 1e-9)))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                function()
            taken[name].append((time.perf_counter() - start) / loops[name])
    return {name: statistics.median(values) for name, values in taken.items()}


@contextlib.contextmanager
def others() -> Iterator[Callable[[], float]]:
    """Yields a function that tells how many cores other processes kept busy, on average, since the block began."""
    start, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores() -> float:
        wall = max(time.perf_counter() - start, 1e-3)
        return max(0.0, ((_busy_seconds() - busy) - (_own_seconds() - own)) / wall)

    yield cores


def load_now(seconds: float = 0.5) -> float:
    """Cores that other processes keep busy at this moment."""
    with others() as cores:
        time.sleep(seconds)
        return cores()


def peak_memory() -> int:
    """The most memory this process has had so far, in bytes (resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _busy_seconds() -> float:
    now = psutil.cpu_times()
    # iowait and steal are not this machine's processes at work; guest time is already counted in user.
    return now.user + now.system + getattr(now, "nice", 0.0) + getattr(now, "irq", 0.0) + getattr(now, "softirq", 0.0)


def _own_seconds() -> float:
    now = os.times()
    total = now.user + now.system + now.children_user + now.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            spent = child.cpu_times()
            total += spent.user + spent.system
            # Ranks that have ended are in the sum of the fork server that started them.
            total += getattr(spent, "children_user", 0.0) + getattr(spent, "children_system", 0.0)
    return total
