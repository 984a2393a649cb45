"""Whether torchrun, SLURM or submitit has started this process as one of several."""

from __future__ import annotations

import os
from typing import NamedTuple


class Started(NamedTuple):
    """The place of this process among those that a launcher has started."""

    rank: int
    size: int
    local: int
    meeting: str
    """How the ranks find each other, as ``init_method`` of torch.distributed."""


def started() -> Started | None:
    """The place of this process if torchrun, or submitit on SLURM or here, has started several; else None."""
    env = os.environ
    if env.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:
        place = Started(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)), "env://")
    elif "SUBMITIT_EXECUTOR" in env:
        import submitit

        job = submitit.JobEnvironment()
        # The folder of its jobs is shared by all hosts; a file in it needs no free port.
        meeting = f"file://{job.paths.folder.resolve()}/{job.job_id}_{job.num_tasks}.meeting"
        place = Started(job.global_rank, job.num_tasks, job.local_rank, meeting)
    else:
        return None
    return place if place.size > 1 else None
