"""Collectives among ranks, with every byte counted."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np


class Traffic:
    """Bytes that one rank has put on the wire, by group and kind of collective.

    What a library does inside a collective cannot be seen, so each is counted as its bandwidth-optimal ring: all_reduce
    2 (n - 1) / n of the vector, reduce_scatter (n - 1) / n of it, all_gather n - 1 times the own part; broadcast n - 1 times
    the vector, at its source; all_to_all and exchange what goes to others. Source: Thakur, Rabenseifner, Gropp (2005), 4.

    Attributes:
        calls: how often, by (group, kind).
        to: int64, bytes sent to each rank of the world by exchange, all_to_all and broadcast.
    """

    def __init__(self, world: int) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.to = np.zeros(world, np.int64)
        self._bytes: dict[tuple[str, str], Fraction] = {}

    def add(self, group: str, kind: str, size: Fraction | int) -> None:
        self.calls[group, kind] += 1
        self._bytes[group, kind] = self._bytes.get((group, kind), Fraction()) + size

    def bytes(self, group: str | None = None, kind: str | None = None) -> float | int:
        """Bytes of one group and kind; None is any."""
        wanted = [size for (name, what), size in self._bytes.items() if group in (None, name) and kind in (None, what)]
        return _plain(sum(wanted, Fraction()))

    def rows(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [
            {"group": name, "kind": kind, "calls": self.calls[name, kind], "bytes": _plain(size)}
            for (name, kind), size in sorted(self._bytes.items())
        ]


class Pending:
    """Something under way; ``wait()`` returns when it is done here, or raises after the ranks' time-out."""

    def __init__(self, works: Iterable[Any], held: Any = None, timeout: float | int = 120.0) -> None:
        self._works, self._held, self._timeout = list(works), held, timeout

    def wait(self) -> None:
        for work in self._works:
            work.wait(datetime.timedelta(seconds=self._timeout))
        self._works, self._held = [], None  # sent memory must live until here


class Group:
    """One rank's view of some ranks; numbers of ranks in calls are those within the group.

    Attributes:
        name: "world", or the axis of a :meth:`grid`.
        rank, size: its number, and how many there are.
        ranks: the members' numbers in the world.
        device: where tensors live that are sent, "cpu" or a CUDA device.
        traffic: shared by all groups of a rank.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        ranks: Sequence[int],
        handle: Any,
        traffic: Traffic,
        device: str = "cpu",
        timeout: float | int = 120.0,
    ) -> None:
        self.name, self.rank, self.size, self.ranks = name, rank, len(ranks), tuple(ranks)
        self.device, self.traffic, self.timeout = device, traffic, timeout
        self._handle = handle

    def grid(self, **axes: int) -> dict[str, Group]:
        """A group for each axis of a grid of the members, the last axis fastest: ``group.grid(pp=2, dp=2, tp=2)["tp"]``.

        All members must ask for the same grid.

        Raises:
            ValueError: the product of the axes is not the size of this group.
        """
        if math.prod(axes.values()) != self.size or any(size < 1 for size in axes.values()):
            wanted = " x ".join(f"{name}={size}" for name, size in axes.items())
            raise ValueError(
                f"a grid {wanted} has {math.prod(axes.values())} ranks, this group has {self.size}; start as many as the product"
            )
        numbers = np.array(self.ranks).reshape(list(axes.values()))
        here = np.unravel_index(self.rank, numbers.shape)
        found = {}
        for axis, name in enumerate(axes):
            index: list[Any] = [int(i) for i in here]
            index[axis] = slice(None)
            members = [int(number) for number in numbers[tuple(index)]]
            handle = self._handle if len(members) == self.size else _handle(tuple(members), self.timeout)
            found[name] = Group(name, int(here[axis]), members, handle, self.traffic, self.device, self.timeout)
        return found

    def all_reduce(self, x: Any, op: str = "sum") -> Any:
        """The sum or "max" over ranks; x is left as it is."""
        out = x.clone()
        self.all_reduce_into(out, op).wait()
        return out

    def all_reduce_into(self, x: Any, op: str = "sum") -> Pending:
        """Begin to replace x by its sum or "max" over ranks."""
        import torch.distributed as dist

        if op not in ("sum", "max"):
            raise ValueError(f"all_reduce: op is {op!r}; wanted 'sum' or 'max'")
        self._count("all_reduce", Fraction(2 * (self.size - 1) * _size(x), self.size))
        if self.size == 1:
            return self._pending([])
        how = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
        return self._pending([dist.all_reduce(x, how, group=self._handle, async_op=True)], x)

    def all_gather(self, x: Any) -> list[Any]:
        """x of every rank, all of one shape."""
        import torch

        out = x.new_empty(self.size * x.numel())
        self.gather_into(out, x.contiguous().reshape(-1)).wait()
        return [torch.reshape(part, x.shape) for part in out.chunk(self.size)] if x.numel() else [x.clone() for _ in self.ranks]

    def gather_into(self, out: Any, x: Any) -> Pending:
        """Begin to fill the flat ``out`` with the flat x of all ranks, in their order."""
        import torch.distributed as dist

        self._flat("gather_into", whole=out, part=x)
        self._count("all_gather", (self.size - 1) * _size(x))
        if self.size == 1:
            out.copy_(x)
            return self._pending([])
        return self._pending([dist.all_gather_single(out, x, group=self._handle, async_op=True)], (out, x))

    def reduce_scatter_into(self, out: Any, x: Any) -> Pending:
        """Begin to fill the flat ``out`` with this rank's part of the sum over ranks of the flat x."""
        import torch.distributed as dist

        self._flat("reduce_scatter_into", whole=x, part=out)
        self._count("reduce_scatter", (self.size - 1) * _size(out))
        if self.size == 1:
            out.copy_(x)
            return self._pending([])
        return self._pending([dist.reduce_scatter_single(out, x, group=self._handle, async_op=True)], (out, x))

    def broadcast(self, x: Any, source: int) -> Any:
        """x of rank ``source``; the others give memory of the same shape, which is left as it is."""
        import torch.distributed as dist

        out = x.clone()
        sent = _size(x) if self.rank == source else 0
        self._count("broadcast", (self.size - 1) * sent, {rank: sent for rank in range(self.size) if rank != source})
        if self.size > 1:
            dist.broadcast(out, self.ranks[source], group=self._handle)
        return out

    def all_to_all(self, parts: Sequence[Any]) -> list[Any]:
        """Send ``parts[r]`` to rank r and return what each rank sent; parts differ in their first axis alone."""
        import torch
        import torch.distributed as dist

        if len(parts) != self.size:
            raise ValueError(f"all_to_all: {len(parts)} parts for {self.size} ranks; wanted one for each, empty ones too")
        sent = {rank: _size(part) for rank, part in enumerate(parts) if rank != self.rank}
        self._count("all_to_all", sum(sent.values()), sent)
        if self.size == 1:
            return [parts[0].clone()]
        lengths = torch.tensor([len(part) for part in parts], device=self.device)
        incoming = torch.empty_like(lengths)
        dist.all_to_all_single(incoming, lengths, group=self._handle)
        out = parts[0].new_empty(int(incoming.sum()), *parts[0].shape[1:])
        dist.all_to_all_single(out, torch.cat(list(parts)), incoming.tolist(), lengths.tolist(), group=self._handle)
        return list(out.split(incoming.tolist()))

    def exchange(self, send: Sequence[tuple[Any, int]] = (), receive: Sequence[tuple[Any, int]] = ()) -> Pending:
        """Begin to send tensors to ranks and to fill tensors from ranks; messages between two ranks keep their order.

        Args:
            send: (tensor, to) pairs; a tensor must not change until the exchange is done.
            receive: (contiguous tensor, source) pairs.
        """
        import torch.distributed as dist

        for tensor, other in (*send, *receive):
            if not 0 <= other < self.size or other == self.rank:
                raise ValueError(f"exchange: rank {self.rank} cannot reach rank {other}; wanted another of 0..{self.size - 1}")
            if tensor.device.type != self.device.partition(":")[0]:
                raise ValueError(f"exchange: a tensor is on {tensor.device}, these ranks send from {self.device}")
        if any(not tensor.is_contiguous() for tensor, _ in receive):
            raise ValueError("exchange: what is received must be contiguous memory, or it would be filled in another order")
        held = [(tensor.contiguous(), to) for tensor, to in send]
        sent: Counter[int] = Counter()
        for tensor, to in held:
            sent[to] += _size(tensor)
        self._count("exchange", sum(sent.values()), sent)
        works = [dist.P2POp(dist.isend, tensor, self.ranks[to], self._handle) for tensor, to in held]
        works += [dist.P2POp(dist.irecv, tensor, self.ranks[source], self._handle) for tensor, source in receive]
        return self._pending(dist.batch_isend_irecv(works) if works else [], (held, receive))

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch.distributed as dist

        if self.size > 1:
            dist.barrier(group=self._handle)

    def agree(self, what: str, value: Any) -> None:
        """Refuse, on all ranks alike, a value that is not the same on all ranks.

        Raises:
            ValueError: naming the ranks and their values.
        """
        import torch.distributed as dist

        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self._handle)
        if any(each != values[0] for each in values):
            shown = ", ".join(f"rank {rank} has {each!r}" for rank, each in enumerate(values))
            raise ValueError(f"{what} must be the same on all ranks: {shown}")

    def _pending(self, works: Sequence[Any], held: Any = None) -> Pending:
        return Pending(works, held, self.timeout)

    def _count(self, kind: str, size: Fraction | int, sent: dict[int, int] | None = None) -> None:
        self.traffic.add(self.name, kind, size)
        for rank, each in (sent or {}).items():
            self.traffic.to[self.ranks[rank]] += each

    def _flat(self, what: str, whole: Any, part: Any) -> None:
        if whole.dim() != 1 or part.dim() != 1 or len(whole) != self.size * len(part) or whole.dtype != part.dtype:
            raise ValueError(
                f"{what}: {whole.dtype}{tuple(whole.shape)} for {self.size} parts of {part.dtype}{tuple(part.shape)}; "
                "wanted flat tensors of one dtype, the whole as long as all parts"
            )


def alone(size: int = 1) -> Group:
    """A group of this process alone; ``size`` > 1 stands in for several where only shapes matter and nothing is sent."""
    return Group("world", 0, range(size), None, Traffic(size))


def _plain(size: Fraction) -> float | int:
    return int(size) if size.denominator == 1 else float(size)


_handles: dict[tuple[int, ...], Any] = {}


def _handle(members: tuple[int, ...], timeout: float | int) -> Any:
    """The process group of some ranks of the world; made once, by its members alone."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if len(members) > 1 and members not in _handles:
        # PyTorch names it by its members and by how many groups this process has made, which differs between members where some
        # calls were of fewer ranks; they would wait for one another under different names. The members alone are name enough.
        named = distributed_c10d._hash_ranks_to_str
        distributed_c10d._hash_ranks_to_str = lambda ranks: f"ranks {'_'.join(map(str, ranks))}"
        try:
            wait = datetime.timedelta(seconds=timeout)
            _handles[members] = dist.new_group(list(members), timeout=wait, use_local_synchronization=True)
        finally:
            distributed_c10d._hash_ranks_to_str = named
    return _handles.get(members)


def _size(x: Any) -> int:
    return x.numel() * x.element_size()
