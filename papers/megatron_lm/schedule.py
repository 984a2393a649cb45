"""Schedules of a pipeline: who runs which forward (F) and backward (B) pass in which order, and whether that can work.

Stage s = chunk * p + rank. F of a stage needs F of the stage before it, B needs B of the stage behind it and its own F.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    gpipe = "gpipe"  # all forwards, then all backwards
    one_f_one_b = "1f1b"  # after a warm-up one forward, one backward
    interleaved = "interleaved"  # the same over v chunks of every rank


class Op(NamedTuple):
    """One pass of one microbatch through one chunk; ``forward`` or backward."""

    forward: bool
    microbatch: int
    chunk: int

    def __str__(self) -> str:
        return f"{'F' if self.forward else 'B'}{self.microbatch}.{self.chunk}"


Schedule = list[list[Op]]
"""The operations of each rank, in order."""


def generate(kind: Kind, ranks: int, microbatches: int, chunks: int = 1) -> Schedule:
    """The schedule of a kind for p ranks, m microbatches and v chunks on each rank.

    Warm-up forwards of rank r: p - r - 1 (1F1B); 2 (p - r - 1) + (v - 1) p (interleaved); all of them (GPipe); never more than
    there are. Source: paper, section 2.2; the order within interleaved, NVIDIA/Megatron-LM,
    megatron/core/pipeline_parallel/schedules.py.

    Raises:
        ValueError: counts below 1; chunks with a kind that has none or with one rank; m no multiple of p when interleaved.
    """
    p, m, v = ranks, microbatches, chunks
    if min(p, m, v) < 1:
        raise ValueError(f"{p} ranks, {m} microbatches, {v} chunks; wanted at least one of each")
    if v > 1 and kind is not Kind.interleaved:
        raise ValueError(f"{kind.value} has one chunk on a rank, got {v}; take interleaved")
    if v > 1 and p == 1:
        raise ValueError(f"{v} chunks on one rank: there is no bubble to shrink; take chunks=1")
    if v > 1 and m % p:
        raise ValueError(f"interleaved wants microbatches in multiples of the ranks, got {m} for {p}")
    forwards, backwards = list(_walk(p, m, v)), list(_walk(p, m, v, forward=False))
    found = []
    for rank in range(p):
        warmup = p - rank - 1 if v == 1 else 2 * (p - rank - 1) + (v - 1) * p
        warmup = m * v if kind is Kind.gpipe else min(warmup, m * v)
        steady = m * v - warmup
        ops = forwards[:warmup]
        for forward, backward in zip(forwards[warmup:], backwards[:steady], strict=True):
            ops += [forward, backward]
        found.append(ops + backwards[steady:])
    return found


def _walk(p: int, m: int, v: int, forward: bool = True) -> Iterator[Op]:
    """Every rank's own order of passes: p microbatches through a chunk, then the same ones through the next chunk."""
    for k in range(m * v):
        if v == 1:
            yield Op(forward, k, 0)
            continue
        chunk = k % (p * v) // p
        yield Op(forward, p * (k // (p * v)) + k % p, chunk if forward else v - 1 - chunk)


def validate(schedule: Schedule, chunks: int = 1) -> int:
    """Refuse a schedule that is not whole or would hang; returns m.

    Raises:
        ValueError: a pass that is missing or stands twice, a backward before its forward, or ranks that wait for each other.
    """
    count = {sum(op.forward for op in ops) for ops in schedule}
    if len(count) > 1 or (total := count.pop()) % chunks:
        raise ValueError("ranks differ in their number of forwards, or a microbatch does not go through all chunks")
    m = total // chunks
    wanted = {Op(forward, i, chunk) for forward in (True, False) for i in range(m) for chunk in range(chunks)}
    for rank, ops in enumerate(schedule):
        if len(ops) != len(wanted) or set(ops) != wanted:
            odd = sorted(map(str, set(ops) ^ wanted)) or sorted(str(op) for op in set(ops) if ops.count(op) > 1)
            raise ValueError(f"rank {rank}: {odd[0]} is missing, stands twice or does not belong here")
        place = {op: i for i, op in enumerate(ops)}
        for op in ops:
            if op.forward and place[op] > place[op._replace(forward=False)]:
                raise ValueError(f"rank {rank}: {op} comes after its own backward")
    done = {(rank, op) for rank, op in order(schedule, chunks)}
    for rank, ops in enumerate(schedule):
        for op in ops:
            if (rank, op) not in done:
                raise ValueError(f"rank {rank} never begins {op}: ranks wait for each other in a circle")
    return m


def order(schedule: Schedule, chunks: int = 1) -> Iterator[tuple[int, Op]]:
    """All passes, each after those it needs and after those before it on its rank; ends early where ranks wait in a circle."""
    done: set[tuple[int, Op]] = set()
    at = [0] * len(schedule)
    moved = True
    while moved:
        moved = False
        for rank, ops in enumerate(schedule):
            while at[rank] < len(ops) and done.issuperset(needs(rank, ops[at[rank]], len(schedule), chunks)):
                done.add((rank, ops[at[rank]]))
                yield rank, ops[at[rank]]
                at[rank] += 1
                moved = True


def needs(rank: int, op: Op, ranks: int, chunks: int) -> list[tuple[int, Op]]:
    """The passes of other stages, and the forward of its own, whose results a pass needs."""
    stage = op.chunk * ranks + rank
    found = [] if op.forward else [(rank, op._replace(forward=True))]
    other = neighbour(stage, op.forward, ranks, chunks, ahead=False)
    return found if other is None else [*found, (other[0], op._replace(chunk=other[1]))]


def neighbour(stage: int, forward: bool, ranks: int, chunks: int, ahead: bool) -> tuple[int, int] | None:
    """(rank, chunk) that the result of a stage's pass goes to (``ahead``) or its input comes from; None at the ends."""
    other = stage + (1 if forward == ahead else -1)
    return (other % ranks, other // ranks) if 0 <= other < ranks * chunks else None


def most_in_flight(schedule: Schedule, rank: int) -> int:
    """Chunk passes of a rank whose activations are kept at once, at most."""
    now = most = 0
    for op in schedule[rank]:
        now += 1 if op.forward else -1
        most = max(most, now)
    return most
