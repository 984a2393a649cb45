"""The event simulator: instructions to DRAM commands with their times, in whole ns.

Every resource (a bank, a channel's unit and buffer, its bus, the companion chip) works through its part of the program in order,
so that each event's time is the latest of the times it waits for. That recurrence is the whole event queue; it is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Int64
from numba import njit

from common.events import Timeline
from papers.pim_gpt.machine import Machine
from papers.pim_gpt.program import F, Op, Program


class Command(IntEnum):
    ACT = 0
    MAC = 1
    RDMAC = 2
    PRE = 3
    REF = 4
    WRGB = 5
    WR = 6
    RD = 7
    ASIC = 8


COLUMNS = ("command", "channel", "bank", "row", "start", "end", "count", "instruction")
C = {name: i for i, name in enumerate(COLUMNS)}


@dataclass(frozen=True)
class Trace:
    """Commands with their times.

    Attributes:
        rows: one command each, see :data:`COLUMNS`; bank -1: all banks; count: column accesses, or numbers on the bus.
        finish: ns at which the last of them has ended.
        given: ns at which each signal was given.
    """

    machine: Machine
    rows: Int64[np.ndarray, "command column"]
    finish: int
    given: Int64[np.ndarray, " signal"]

    def of(self, command: Command) -> Int64[np.ndarray, "some column"]:
        return self.rows[self.rows[:, C["command"]] == command]

    @cached_property
    def hit_rate(self) -> float:
        """Share of the column accesses of all banks that found their row open; the first one behind an ACT did not."""
        banks = np.where(self.rows[:, C["bank"]] < 0, self.machine.banks, 1)
        kind = self.rows[:, C["command"]]
        access = np.isin(kind, (Command.MAC, Command.WR, Command.RD))
        accesses = int((banks * self.rows[:, C["count"]] * access).sum())
        return 1 - int(banks[kind == Command.ACT].sum()) / accesses

    def bytes(self) -> dict[str, int]:
        """Read by the units inside the banks; moved between memory and companion chip."""
        m = self.machine
        inside = int(self.of(Command.MAC)[:, C["count"]].sum()) * m.banks * m.lanes * 2
        moved = int(self.of(Command.WRGB)[:, C["count"]].sum()) * 2 + len(self.of(Command.RDMAC)) * m.banks * 2
        moved += sum(int(self.of(each)[:, C["count"]].sum()) * m.lanes * 2 for each in (Command.WR, Command.RD))
        return {"inside": inside, "moved": moved}

    def busy(self, *commands: Command) -> int:
        """ns in which at least one of these commands is under way anywhere."""
        chosen = self.rows[np.isin(self.rows[:, C["command"]], commands)]
        return _covered(chosen[:, C["start"]], chosen[:, C["end"]])

    def shares(self) -> dict[str, float]:
        """Parts of the time: the units multiply; the companion chip computes; it alone does while no channel works."""
        memory = (Command.ACT, Command.MAC, Command.RDMAC, Command.PRE, Command.REF, Command.WRGB, Command.WR, Command.RD)
        both = self.busy(*memory, Command.ASIC)
        return {
            "units": int((self.of(Command.MAC)[:, C["end"]] - self.of(Command.MAC)[:, C["start"]]).sum())
            / (self.finish * self.machine.channels),
            "companion": self.busy(Command.ASIC) / self.finish,
            "companion alone": (both - self.busy(*memory)) / self.finish,
        }

    def timeline(self, channels: Any = (0,), until: int | None = None) -> Timeline:
        """Spans of some channels and the companion chip, for pictures and Chrome's trace viewer."""
        line, rows = Timeline(unit=1e-9), self.rows
        chosen = np.isin(rows[:, C["channel"]], [-1, *channels])
        if until is not None:
            chosen &= rows[:, C["start"]] < until
        for command, channel, bank, row, start, end, count, _ in rows[chosen].tolist():
            if command == Command.ASIC:
                line.add("companion chip", "compute", start, end)
            elif command in (Command.WRGB, Command.RDMAC):
                line.add(f"channel {channel} bus", Command(command).name, start, end, numbers=count)
            else:
                where = f"channel {channel} banks" if bank < 0 else f"channel {channel} bank {bank}"
                line.add(where, Command(command).name, start, end, row=row, columns=count)
        return line


def simulate(program: Program, machine: Machine) -> Trace:
    """Run a program from an empty machine at time 0."""
    t = machine.timing
    timing = np.array(
        [t.activate, t.precharge, t.open, t.column, t.write, t.refresh_interval, t.refresh, machine.bus(2 * machine.banks)],
        np.int64,
    )
    code = np.ascontiguousarray(program.code)
    given = np.zeros(program.signals + 1, np.int64)
    room = 5 * len(code) + 64
    while True:
        given[:] = 0
        rows = np.empty((room, len(COLUMNS)), np.int64)
        used = _run(code, timing, machine.channels, machine.banks, given, rows)
        if used >= 0:
            break
        room *= 2
    rows = rows[:used]
    return Trace(machine, rows, int(rows[:, C["end"]].max()) if used else 0, given[:-1])


def _covered(start: Any, end: Any) -> int:
    """Length of the union of intervals."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    gap = np.maximum(start[1:] - end[:-1], 0).sum()
    return int(end[-1] - start[0] - gap)


_OP, _CHANNEL, _BANK, _ROW, _COUNT = F["op"], F["channel"], F["bank"], F["row"], F["count"]
_BUFFER, _OUT, _CLOSE, _WAIT, _SIGNAL, _TIME = F["buffer"], F["out"], F["close"], F["wait"], F["signal"], F["time"]
_LOAD, _MAC, _WRITE, _ASIC = int(Op.LOAD), int(Op.MAC), int(Op.WRITE), int(Op.ASIC)
ACT, MAC, RDMAC, PRE, REF, WRGB, WR, RD, ASIC = (int(each) for each in Command)


@njit(cache=True)
@no_type_check
def _put(rows, n, command, channel, bank, row, start, end, count, i):
    rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3] = command, channel, bank, row
    rows[n, 4], rows[n, 5], rows[n, 6], rows[n, 7] = start, end, count, i
    return n + 1


@njit(cache=True)
@no_type_check
def _run(code, timing, channels, banks, given, rows):
    """Fill ``rows`` and the times of signals; returns the number of commands, or -1 where ``rows`` is too short."""
    t_rcd, t_rp, t_ras, t_ccd, t_wr, t_refi, t_rfc, t_out = timing
    used = np.zeros(channels, np.int64)  # the units' last access and the last transfer of a single bank have ended
    unit = np.zeros(channels, np.int64)  # the units' last access has ended
    filled = np.zeros(channels, np.int64)  # the buffer holds its numbers
    bus = np.zeros(channels, np.int64)
    taken = np.zeros(channels, np.int64)  # the units' last sums are on their way, so that new ones may be made
    due = np.full(channels, t_refi, np.int64)
    opened = np.full((channels, banks), -1, np.int64)
    since = np.zeros((channels, banks), np.int64)  # ACT of the open row
    ready = np.zeros((channels, banks), np.int64)  # the earliest next ACT
    hold = np.zeros((channels, banks), np.int64)  # the earliest PRE
    asic, n = 0, 0
    for i in range(len(code)):
        op, c, wait, time = code[i, _OP], code[i, _CHANNEL], code[i, _WAIT], code[i, _TIME]
        row, count = code[i, _ROW], code[i, _COUNT]
        begin = given[wait] if wait >= 0 else 0
        if n + banks + 16 > len(rows):
            return -1
        if op == _ASIC:
            begin = max(begin, asic)
            asic = begin + time
            end = asic + code[i, _BUFFER]
            if time > 0:
                n = _put(rows, n, ASIC, -1, -1, -1, begin, asic, 0, i)
            if code[i, _SIGNAL] >= 0:
                given[code[i, _SIGNAL]] = max(given[code[i, _SIGNAL]], end)
            continue
        block = op in (_LOAD, _MAC) or code[i, _OUT] == 1
        now = max(begin, used[c] if block else unit[c])
        while block and t_refi > 0 and now >= due[c]:
            quiet = max(due[c], used[c], bus[c])
            for b in range(banks):
                if opened[c, b] >= 0:
                    close = max(hold[c, b], due[c], used[c])
                    n = _put(rows, n, PRE, c, b, opened[c, b], close, close + t_rp, 0, i)
                    opened[c, b] = -1
                    ready[c, b] = close + t_rp
                quiet = max(quiet, ready[c, b])
                if n + banks + 16 > len(rows):
                    return -1
            n = _put(rows, n, REF, c, -1, -1, quiet, quiet + t_rfc, 0, i)
            ready[c, :] = quiet + t_rfc
            bus[c] = max(bus[c], quiet + t_rfc)
            now = max(now, quiet + t_rfc)
            due[c] += t_refi
        if op == _LOAD:
            # Rows may be opened meanwhile.
            start = max(now, bus[c])
            end = start + time
            n = _put(rows, n, WRGB, c, -1, -1, start, end, count, i)
            filled[c], bus[c] = end, end
        elif op == _MAC:
            all_open, latest, pre = True, now, now
            for b in range(banks):
                if opened[c, b] != row:
                    all_open = False
            if not all_open:
                for b in range(banks):
                    if opened[c, b] >= 0:
                        pre = max(pre, hold[c, b])
                for b in range(banks):
                    if opened[c, b] >= 0:
                        n = _put(rows, n, PRE, c, b, opened[c, b], pre, pre + t_rp, 0, i)
                        ready[c, b] = pre + t_rp
                    latest = max(latest, ready[c, b])
                n = _put(rows, n, ACT, c, -1, row, latest, latest + t_rcd, 0, i)
                for b in range(banks):
                    opened[c, b], since[c, b], hold[c, b] = row, latest, latest + t_ras
            start = max(now, filled[c], taken[c])
            for b in range(banks):
                start = max(start, since[c, b] + t_rcd)
            end = start + count * t_ccd
            n = _put(rows, n, MAC, c, -1, row, start, end, count, i)
            unit[c], used[c] = end, end
            if code[i, _OUT]:
                out = max(end, bus[c])
                n = _put(rows, n, RDMAC, c, -1, row, out, out + t_out, banks, i)
                taken[c], bus[c] = out, out + t_out
            pre = end
            for b in range(banks):
                hold[c, b] = max(hold[c, b], end)
                pre = max(pre, hold[c, b])
            if code[i, _CLOSE]:
                n = _put(rows, n, PRE, c, -1, row, pre, pre + t_rp, 0, i)
                for b in range(banks):
                    opened[c, b], ready[c, b] = -1, pre + t_rp
            if code[i, _OUT]:
                end = out + t_out
        else:
            b = code[i, _BANK]
            if opened[c, b] >= 0:
                pre = max(now, hold[c, b])
                n = _put(rows, n, PRE, c, b, opened[c, b], pre, pre + t_rp, 0, i)
                ready[c, b] = pre + t_rp
            act = max(now, ready[c, b])
            n = _put(rows, n, ACT, c, b, row, act, act + t_rcd, 0, i)
            start = max(act + t_rcd, bus[c])
            end = start + max(time, count * t_ccd)
            n = _put(rows, n, WR if op == _WRITE else RD, c, b, row, start, end, count, i)
            bus[c], used[c] = end, max(used[c], end)
            pre = max(act + t_ras, end + (t_wr if op == _WRITE else 0))
            n = _put(rows, n, PRE, c, b, row, pre, pre + t_rp, 0, i)
            opened[c, b], ready[c, b] = -1, pre + t_rp
        if code[i, _SIGNAL] >= 0:
            given[code[i, _SIGNAL]] = max(given[code[i, _SIGNAL]], end)
    return n
