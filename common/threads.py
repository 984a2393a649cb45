"""Plain threads for compiled loops that release the interpreter lock.

An OpenMP runtime of numba's own, beside that of torch, would spin on cores that the other needs.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_parts(work: Callable[[int, int], object], count: int, parts: int, threads: int) -> None:
    """Call ``work(first, last)`` for ``parts`` stretches of nearly one length that make up range(count), in ``threads``
    threads; here and now if there is one part."""
    if parts <= 1:
        work(0, count)
        return
    cuts = [count * part // parts for part in range(parts + 1)]
    list(_pool(threads).map(lambda ends: work(*ends), itertools.pairwise(cuts)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled loops")


if hasattr(os, "register_at_fork"):
    # A child has no threads but its own.
    os.register_at_fork(after_in_child=_pool.cache_clear)
