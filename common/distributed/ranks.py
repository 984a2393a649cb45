"""Ranks over gloo, and their collectives with every byte counted."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from . import processes
from .processes import RankError

__all__ = ["Group", "RankError", "launch"]


class Group:
    """One rank's view of all ranks.

    Attributes:
        rank, size: its number, and how many there are.
        sent: bytes that it has sent to each rank by :meth:`all_to_all`, itself included (they stay in its memory).
        reduced: bytes that it has given to :meth:`all_reduce`; gathered: to :meth:`all_gather`.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent: Int64[np.ndarray, " ranks"] = np.zeros(size, np.int64)
        self.reduced = self.gathered = 0

    def all_to_all(self, parts: Sequence[Any]) -> list[Any]:
        """Send ``parts[r]`` to rank r and return what each rank sent; parts differ in their first axis alone."""
        import torch
        import torch.distributed as dist

        if len(parts) != self.size:
            raise ValueError(f"all_to_all: {len(parts)} parts for {self.size} ranks; wanted one for each, empty ones too")
        lengths = torch.tensor([len(part) for part in parts])
        incoming = torch.empty_like(lengths)
        dist.all_to_all_single(incoming, lengths)
        self.sent += np.array([part.numel() * part.element_size() for part in parts])
        out = parts[0].new_empty(int(incoming.sum()), *parts[0].shape[1:])
        dist.all_to_all_single(out, torch.cat(list(parts)), incoming.tolist(), lengths.tolist())
        return list(out.split(incoming.tolist()))

    def all_reduce(self, x: Any) -> Any:
        """The sum over ranks; x is left as it is."""
        import torch.distributed as dist

        total = x.clone()
        self.reduced += x.numel() * x.element_size()
        dist.all_reduce(total)
        return total

    def all_gather(self, x: Any) -> list[Any]:
        """x of every rank, all of one shape."""
        import torch
        import torch.distributed as dist

        found = [torch.empty_like(x) for _ in range(self.size)]
        self.gathered += x.numel() * x.element_size()
        dist.all_gather(found, x.contiguous())
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch.distributed as dist

        dist.barrier()


def launch(function: Callable[..., Any], ranks: int, *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Call ``function(group, *arguments)`` in ``ranks`` processes and return what each returned, by rank.

    Args:
        function: of a module that can be imported (no lambda, not of ``__main__`` in a notebook).
        arguments: pickled for every rank; tensors are copied.
        timeout: seconds for all of it, and for every collective.

    Raises:
        RankError: a rank raised, died or overran; the others have been ended.
        ValueError: no ranks.
    """
    if ranks < 1:
        raise ValueError(f"launch: ranks is {ranks}; wanted at least one")
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        meeting = str(Path(folder) / "meeting")
        each = [(function, rank, ranks, meeting, timeout, arguments) for rank in range(ranks)]
        return processes.run(_rank, each, timeout, ["torch", "torch.distributed"])


def _rank(function: Callable[..., Any], rank: int, size: int, meeting: str, timeout: float, arguments: tuple[Any, ...]) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout)
    )
    # After an error the process ends at once; leaving the group first would let others fail, and report, before it.
    result = function(Group(rank, size), *arguments)
    dist.barrier()  # who leaves early cuts the others' connections
    dist.destroy_process_group()
    return result
