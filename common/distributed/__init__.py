"""Several processes on this machine: ranks of torch.distributed over gloo, and devices of a JAX mesh on the CPU.

    def work(group, x): ...            # a function of a module, run by every rank
    results = launch(work, 4, x)       # what each rank returned, by rank

Ranks come from a fork server that has torch loaded, so that a second launch takes a tenth of a second. A rank that fails
or dies ends them all within seconds, and the error names it.
"""

from __future__ import annotations

from .mesh import on_devices
from .ranks import Group, RankError, launch

__all__ = ["Group", "RankError", "launch", "on_devices"]
