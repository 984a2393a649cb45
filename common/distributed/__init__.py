"""Several processes: ranks of torch.distributed, and devices of a JAX mesh on the CPU.

    def work(group, x): ...            # a function of a module, run by every rank
    results = launch(work, 4, x)       # what each rank returned, by rank

Ranks come from a fork server that has torch loaded, so that a second launch takes a tenth of a second; :class:`Ranks` keeps
them for several calls, :class:`Crew` those of several numbers. A rank that fails or dies ends them all within seconds, and the error names it. Under torchrun or
submitit the same calls use the ranks that were started. :mod:`common.distributed.differentiable` has what autograd passes.
"""

from __future__ import annotations

from .group import Group, Pending, Traffic, alone
from .mesh import on_devices
from .place import started
from .processes import RankError
from .ranks import Crew, Ranks, launch

__all__ = ["Crew", "Group", "Pending", "RankError", "Ranks", "Traffic", "alone", "launch", "on_devices", "started"]
