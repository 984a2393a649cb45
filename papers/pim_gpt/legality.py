"""Is a trace one that DRAM would take? Every rule is checked on the commands alone, without the simulator's state."""

from __future__ import annotations

from typing import Any

import numpy as np

from papers.pim_gpt.simulator import C, Command, Trace

_POSTPONED = 8
"""Refresh intervals that one refresh may be late (JEDEC allows eight to be put off)."""


def violations(trace: Trace) -> list[str]:
    """A sentence for each rule that is broken, with how often and where first; none for a legal trace.

    Rules: no column before ACT + tRCD nor in a row that is not open; no PRE before ACT + tRAS, before the last column has ended
    or within tWR of a write; no ACT before PRE + tRP nor within tRC; no command during a refresh, all rows closed for it, none
    too early or too late; one transfer at a time on a bus; no MAC while the buffer is filled, while another one runs or while
    sums have not left; one operator at a time in the companion chip.
    """
    found: list[str] = []
    for channel in range(trace.machine.channels):
        rows = trace.rows[trace.rows[:, C["channel"]] == channel]
        _channel(trace, channel, rows, found)
        for bank in range(trace.machine.banks):
            mine = rows[(rows[:, C["bank"]] == bank) | (rows[:, C["bank"]] < 0)]
            _bank(trace, f"channel {channel} bank {bank}", mine, found)
    _serial("companion chip", "two operators at once", trace.of(Command.ASIC), found)
    return found


def _note(found: list[str], where: str, rule: str, wrong: Any, times: Any) -> None:
    if np.any(wrong):
        found.append(f"{where}: {rule}, {int(np.sum(wrong))} times, first at {int(times[np.argmax(wrong)])} ns")


def _serial(where: str, rule: str, rows: Any, found: list[str]) -> None:
    rows = rows[np.argsort(rows[:, C["start"]], kind="stable")]
    _note(found, where, rule, rows[1:, C["start"]] < np.maximum.accumulate(rows[:-1, C["end"]]), rows[1:, C["start"]])


def _channel(trace: Trace, channel: int, rows: Any, found: list[str]) -> None:
    where, t = f"channel {channel}", trace.machine.timing
    kind, start, end = rows[:, C["command"]], rows[:, C["start"]], rows[:, C["end"]]
    _serial(where, "two transfers on the bus", rows[np.isin(kind, (Command.WRGB, Command.RDMAC, Command.WR, Command.RD))], found)
    _serial(where, "MAC while the buffer is filled or another MAC runs", rows[np.isin(kind, (Command.WRGB, Command.MAC))], found)
    for i, refresh in enumerate(rows[kind == Command.REF], 1):
        begin, until = refresh[C["start"]], refresh[C["end"]]
        during = (start < until) & (end > begin) & (kind != Command.REF)
        _note(found, where, "command during a refresh", during, start)
        due = i * t.refresh_interval
        _note(found, where, "refresh early or late", [not due <= begin <= due + _POSTPONED * t.refresh_interval], [begin])
    if t.refresh_interval:
        count = int((kind == Command.REF).sum())
        _note(found, where, "refresh left out", [trace.finish > (count + 1 + _POSTPONED) * t.refresh_interval], [trace.finish])
    out, mac = rows[kind == Command.RDMAC], rows[kind == Command.MAC]
    after = np.searchsorted(mac[:, C["start"]], out[:, C["start"]], side="left")
    # The MAC whose sums leave is the last one before; it must have ended.
    _note(
        found,
        where,
        "sums leave before they are made",
        mac[np.maximum(after - 1, 0), C["end"]] > out[:, C["start"]],
        out[:, C["start"]],
    )


def _bank(trace: Trace, where: str, rows: Any, found: list[str]) -> None:
    t = trace.machine.timing
    kind = rows[:, C["command"]]
    rows = rows[np.isin(kind, (Command.ACT, Command.PRE, Command.MAC, Command.WR, Command.RD, Command.REF))]
    # At one moment a row closes after its last column, and columns follow ACT.
    rank = np.array([0, 1, 1, 3, 2, 1, 1, 1, 1])[rows[:, C["command"]]]
    rows = rows[np.lexsort((rank, rows[:, C["start"]]))]
    kind, start, end, row = rows[:, C["command"]], rows[:, C["start"]], rows[:, C["end"]], rows[:, C["row"]]
    act, pre, refresh = kind == Command.ACT, kind == Command.PRE, kind == Command.REF
    column = np.isin(kind, (Command.MAC, Command.WR, Command.RD))
    last_act, last_pre = _last(act), _last(pre)
    is_open = last_act > last_pre
    where_act = np.maximum(last_act, 0)
    _note(found, where, "column of a row that is not open", column & ~(is_open & (row[where_act] == row)), start)
    _note(found, where, "column within tRCD", column & is_open & (start < start[where_act] + t.activate), start)
    _note(found, where, "PRE within tRAS", pre & is_open & (start < start[where_act] + t.open), start)
    _note(found, where, "PRE of a closed bank", pre & ~is_open, start)
    _note(found, where, "ACT of an open bank", act & is_open, start)
    _note(found, where, "ACT within tRP", act & (last_pre >= 0) & (start < start[np.maximum(last_pre, 0)] + t.precharge), start)
    _note(found, where, "ACT within tRC", act & (last_act >= 0) & (start < start[where_act] + t.cycle), start)
    _note(found, where, "refresh with an open row", refresh & is_open, start)
    _note(
        found,
        where,
        "refresh within tRP",
        refresh & (last_pre >= 0) & (start < start[np.maximum(last_pre, 0)] + t.precharge),
        start,
    )
    for command, rest in ((Command.MAC, 0), (Command.RD, 0), (Command.WR, t.write)):
        last = _last(kind == command)
        wrong = pre & (last > last_act) & (start < end[np.maximum(last, 0)] + rest)
        _note(found, where, f"PRE before {command.name} has ended", wrong, start)


def _last(mask: Any) -> Any:
    """Index of the last true element strictly before each, -1 for none."""
    index = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
    return np.concatenate([[-1], index[:-1]]) if len(mask) else index
