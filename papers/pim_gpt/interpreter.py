"""A second machine, slow on purpose: it has no events and knows no times to come, it lives through every ns.

Each bank has a row, a count of ns since it was opened and a wait before it may be opened; units, buffers and buses count down.
Every ns each part looks whether what it has to do next may begin. It reads the same instructions as the simulator and nothing else
of it, and has to finish at the same ns.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from papers.pim_gpt.machine import Machine
from papers.pim_gpt.program import FIELDS, Op, Program


@dataclass
class _Bank:
    row: int = -1
    age: int = 0  # ns since ACT
    rest: int = 0  # ns before the next ACT
    busy: int = 0  # ns before PRE
    shut: bool = False  # close as soon as allowed
    queue: deque[dict[str, Any]] = field(default_factory=deque)  # transfers of this bank alone


@dataclass
class _Channel:
    banks: list[_Bank]
    queue: deque[dict[str, Any]] = field(default_factory=deque)
    turns: deque[int] = field(default_factory=deque)  # order of single-bank transfers on the bus
    visit: dict[str, Any] | None = None
    fill: dict[str, Any] | None = None
    unit: int = 0
    bus: int = 0
    filling: int = 0
    transfer: int = 0  # of a single bank
    sums: dict[str, Any] | None = None  # waiting in the banks for the bus
    refreshes: int = 0
    refreshing: int = 0
    pending: bool = False

    def lone(self) -> bool:
        return any(bank.queue for bank in self.banks)


def interpret(program: Program, machine: Machine, limit: int = 1_000_000) -> int:
    """The ns at which the program has ended.

    Raises:
        RuntimeError: it has not after ``limit`` ns.
    """
    instructions = [dict(zip(FIELDS, row, strict=True)) for row in program.code.tolist()]
    owing = [0] * program.signals
    for each in instructions:
        if each["signal"] >= 0:
            owing[each["signal"]] += 1
    channels = [_Channel([_Bank() for _ in range(machine.banks)]) for _ in range(machine.channels)]
    chip: deque[dict[str, Any]] = deque()
    for each in instructions:
        (chip if each["op"] == Op.ASIC else channels[each["channel"]].queue).append(each)
    later: dict[int, list[int]] = {}  # signals by the ns they are given at
    chip_busy, finish, now = 0, 0, 0

    def give(at: int, instruction: dict[str, Any]) -> None:
        if instruction["signal"] >= 0:
            later.setdefault(at, []).append(instruction["signal"])

    while now < limit:
        for signal in later.pop(now, ()):
            owing[signal] -= 1
        moved = True
        while moved:  # until nothing more begins in this ns
            moved = False
            while chip and chip_busy == 0 and (chip[0]["wait"] < 0 or owing[chip[0]["wait"]] == 0):
                task = chip.popleft()
                chip_busy = task["time"]
                if task["time"] + task["buffer"]:
                    give(now + task["time"] + task["buffer"], task)
                elif task["signal"] >= 0:
                    owing[task["signal"]] -= 1
                if task["time"]:
                    finish = max(finish, now + task["time"])
                moved = True
            for channel in channels:
                while end := _act(channel, machine, now, owing, give):
                    finish, moved = max(finish, end), True
        under_way = [_tick(channel, machine) for channel in channels]
        chip_busy = max(0, chip_busy - 1)
        if not (chip or later or any(under_way) or chip_busy):
            return finish
        now += 1
    raise RuntimeError(f"the program has not ended after {limit} ns")


def _act(c: _Channel, machine: Machine, now: int, owing: list[int], give: Any) -> int:
    """Begin one thing that may begin now; returns the ns of its end, 0 if nothing may."""
    t = machine.timing
    for bank in c.banks:
        if bank.row >= 0 and bank.shut and bank.age >= t.open and bank.busy == 0:
            bank.row, bank.rest, bank.shut = -1, t.precharge, False
            return now + t.precharge
    if c.sums is not None and c.unit == 0 and c.bus == 0:
        task, c.sums = c.sums, None
        c.bus = machine.bus(2 * machine.banks)
        give(now + c.bus, task)
        return now + c.bus
    if c.fill is not None and c.bus == 0:
        task, c.fill = c.fill, None
        c.bus = c.filling = task["time"]
        give(now + c.bus, task)
        return now + c.bus
    if c.turns:  # transfers of single banks: ACT each at once, the bus in turn
        for bank in c.banks:
            if bank.queue and bank.row < 0 and bank.rest == 0:
                bank.row, bank.age, bank.busy = bank.queue[0]["row"], 0, 1 << 40
                return now + t.activate
        bank = c.banks[c.turns[0]]
        if bank.row >= 0 and bank.busy > 1 << 30 and bank.age >= t.activate and c.bus == 0:
            task = bank.queue.popleft()
            c.turns.popleft()
            length = max(task["time"], task["count"] * t.column)
            c.bus, bank.busy, bank.shut = length, length + (t.write if task["op"] == Op.WRITE else 0), True
            c.transfer = max(c.transfer, length)
            give(now + length, task)
            return now + length
    if c.refreshing == 0 and c.pending:
        if all(b.row < 0 and b.rest == 0 for b in c.banks) and c.bus == 0 and c.sums is None and c.fill is None:
            c.refreshing, c.pending = t.refresh, False
            c.refreshes += 1
            c.bus = t.refresh
            for bank in c.banks:
                bank.rest = t.refresh
            return now + t.refresh
        return 0
    if c.visit is not None:
        task = c.visit
        if all(b.row == task["row"] for b in c.banks):
            ready = (
                c.filling == 0 and c.fill is None and c.unit == 0 and c.sums is None and all(b.age >= t.activate for b in c.banks)
            )
            if ready:
                c.unit = task["count"] * t.column
                c.visit = None
                for bank in c.banks:
                    bank.busy, bank.shut = c.unit, bool(task["close"])
                if task["out"]:
                    c.sums = task
                else:
                    give(now + c.unit, task)
                return now + c.unit
        elif all(b.row < 0 and b.rest == 0 for b in c.banks):
            for bank in c.banks:
                bank.row, bank.age = task["row"], 0
            return now + t.activate
        elif not any(b.shut for b in c.banks) and all(b.age >= t.open and b.busy == 0 for b in c.banks if b.row >= 0):
            for bank in c.banks:
                bank.shut = bank.row >= 0
        return 0
    return _next(c, machine, now, owing)


def _next(c: _Channel, machine: Machine, now: int, owing: list[int]) -> int:
    """Take the next instruction, or a refresh that is due before it."""
    if not c.queue or c.refreshing:
        return 0
    task, t = c.queue[0], machine.timing
    if task["op"] == Op.LOAD and c.fill is not None:
        return 0
    single = task["op"] in (Op.WRITE, Op.READ)
    begins = not single or task["out"]
    if c.unit or (begins and (c.transfer or c.turns or c.lone())):
        return 0
    if begins and t.refresh_interval and now >= (c.refreshes + 1) * t.refresh_interval:
        c.pending = True
        for bank in c.banks:
            bank.shut = bank.row >= 0
        return now
    if task["wait"] >= 0 and owing[task["wait"]]:
        return 0
    c.queue.popleft()
    if single:
        c.banks[task["bank"]].queue.append(task)
        c.turns.append(task["bank"])
        if c.banks[task["bank"]].row >= 0:
            c.banks[task["bank"]].shut = True
    elif task["op"] == Op.LOAD:
        c.fill = task
    else:
        c.visit = task
    return max(now, 1)


def _tick(c: _Channel, machine: Machine) -> bool:
    """One ns passes; whether anything is still under way or waiting."""
    busy = bool(c.queue or c.turns or c.visit or c.fill or c.sums or c.unit or c.bus or c.refreshing or c.pending)
    for bank in c.banks:
        busy = busy or bank.rest > 0 or bool(bank.queue) or bank.shut
        bank.age += 1
        bank.rest = max(0, bank.rest - 1)
        if bank.busy <= 1 << 30:
            bank.busy = max(0, bank.busy - 1)
    c.unit, c.bus, c.filling = max(0, c.unit - 1), max(0, c.bus - 1), max(0, c.filling - 1)
    c.transfer, c.refreshing = max(0, c.transfer - 1), max(0, c.refreshing - 1)
    return busy
