"""Independent jobs, dealt to processes of one thread each: small networks gain nothing from a second thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def dealt(function: Callable[..., Any], jobs: Sequence[Sequence[Any]], processes: int) -> Iterator[Any]:
    """``function(*job)`` of every job, in their order, each as soon as it and all before it are there; 1: in this process.

    Args:
        function: of a module that can be imported. What it raises is raised here.
    """
    if processes == 1 or len(jobs) < 2:
        yield from (function(*job) for job in jobs)
        return
    import joblib

    # Arrays travel as copies: memory-mapped ones would be read-only there.
    with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=1, max_nbytes=None):
        yield from joblib.Parallel(return_as="generator")(joblib.delayed(_alone)(function, *job) for job in jobs)


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    return function(*arguments)
