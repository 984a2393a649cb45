"""How many threads PyTorch uses, and plain ones for compiled loops that release the interpreter lock.

An OpenMP runtime of numba's own, beside that of torch, would spin on cores that the other needs.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within it PyTorch computes with so many threads; afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parts(work: Callable[[int, int], object], count: int, parts: int, threads: int) -> None:
    """Call ``work(first, last)`` for ``parts`` stretches of nearly one length that make up range(count), in ``threads``
    threads of which the caller's is one: it takes the first stretch itself, and need not wait to be woken."""
    cuts = [count * part // max(parts, 1) for part in range(max(parts, 1) + 1)]
    (first, last), *rest = itertools.pairwise(cuts)
    others = [_pool(max(threads - 1, 1)).submit(work, *ends) for ends in rest]
    try:
        work(first, last)
    finally:
        # What the others write into must not be given up before they have ended.
        wait(others)
    for each in others:
        each.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled loops")


if hasattr(os, "register_at_fork"):
    # A child has no threads but its own.
    os.register_at_fork(after_in_child=_pool.cache_clear)
