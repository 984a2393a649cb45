"""Independent jobs, dealt to processes of one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common.runner import Run
from papers.tensorized_emo.config import Config


def dealt(config: Config, run: Run, function: Callable[..., Any], jobs: Sequence[Any], label: str) -> list[Any]:
    """``function(config, *job)`` of every job, in their order."""
    if config.workers == 1:
        return [function(config, *job) for job in run.track(jobs, label)]
    import joblib

    with joblib.parallel_config("loky", n_jobs=config.workers, inner_max_num_threads=1):
        parallel = joblib.Parallel(return_as="generator")(joblib.delayed(_alone)(function, config, *job) for job in jobs)
        return [each for each, _ in zip(parallel, run.track(jobs, label), strict=True)]


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    return function(*arguments)
