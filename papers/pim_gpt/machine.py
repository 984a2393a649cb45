"""The machine: memory with a multiply-accumulate unit at every bank, and a companion chip; what may not be is refused here."""

from __future__ import annotations

from dataclasses import dataclass, field

from papers.pim_gpt import published

ELEMENT = 2
"""Bytes of a BF16 number."""


@dataclass(frozen=True)
class Timing:
    """DRAM timing in whole ns.

    Attributes:
        activate: tRCD, from opening a row to its first column.
        precharge: tRP, from closing a row to opening the next.
        cycle: tRC, from opening a row to opening the next one of the same bank; tRAS = tRC - tRP.
        column: tCCD, one column access.
        write: tWR, from the last written column to closing the row.
        refresh_interval, refresh: tREFI and tRFC; an interval of 0 switches refresh off.
    """

    activate: int = published.TIMING["activate"]
    precharge: int = published.TIMING["precharge"]
    cycle: int = published.ROW_OPEN + published.TIMING["precharge"]
    column: int = published.TIMING["column"]
    write: int = published.TIMING["write"]
    refresh_interval: int = published.TIMING["refresh_interval"]
    refresh: int = published.TIMING["refresh"]

    def __post_init__(self) -> None:
        if self.cycle < self.activate + self.precharge:
            raise ValueError(
                f"tRC of {self.cycle} ns is less than tRCD + tRP = {self.activate + self.precharge} ns; a row cannot close "
                "before it is open: raise cycle"
            )
        if min(self.activate, self.precharge, self.column) < 1 or min(self.write, self.refresh_interval, self.refresh) < 0:
            raise ValueError(f"timing must be whole ns, at least 1 for tRCD, tRP and tCCD: {self}")

    @property
    def open(self) -> int:
        """tRAS: how long a row stays open at least."""
        return self.cycle - self.precharge


@dataclass(frozen=True)
class Machine:
    """Sizes are in BF16 numbers, times in ns (1 cycle = 1 ns).

    Attributes:
        row: numbers in a DRAM row.
        lanes: multipliers of a bank's unit; one column access delivers as many numbers.
        buffer: numbers in a channel's global buffer.
        rows: rows of a bank (16384 of 2 KB: 4 Gb a channel, 4 GiB in all).
        pin_rate: Gb/s of each of the ``pins`` between a channel and the companion chip.
        adders, multipliers, depth: the companion chip's units, and the cycles that one of its operators takes beyond its share
            of them (the depth of the pipeline and of reductions; own estimate).
    """

    channels: int = 8
    banks: int = 16
    row: int = 1024
    lanes: int = 16
    buffer: int = 1024
    rows: int = 16384
    pin_rate: float = 16.0
    pins: int = 32
    adders: int = int(published.ASIC["adders"])
    multipliers: int = int(published.ASIC["multipliers"])
    depth: int = 16
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        if min(self.channels, self.banks, self.lanes, self.rows) < 1 or self.pin_rate <= 0:
            raise ValueError(f"channels, banks, lanes, rows and pin_rate must be positive: {self}")
        for name, size in (("row", self.row), ("buffer", self.buffer)):
            if size < self.lanes or size % self.lanes:
                raise ValueError(
                    f"{name} has {size} numbers; wanted a multiple of the {self.lanes} that one column access delivers"
                )

    @property
    def units(self) -> int:
        """Multiply-accumulate units: one for each bank."""
        return self.channels * self.banks

    @property
    def columns(self) -> int:
        """Column accesses of a row."""
        return self.row // self.lanes

    @property
    def peak(self) -> int:
        """Multiply-accumulates of a ns."""
        return self.units * self.lanes

    @property
    def internal_bandwidth(self) -> float:
        """Bytes a second from all banks to their units."""
        return self.peak * ELEMENT * 1e9 / self.timing.column

    @property
    def pin_bandwidth(self) -> float:
        """Bytes a ns between one channel and the companion chip."""
        return self.pin_rate * self.pins / 8

    @property
    def capacity(self) -> int:
        """Bytes of memory."""
        return self.units * self.rows * self.row * ELEMENT

    def bus(self, size: int) -> int:
        """ns of ``size`` bytes between one channel and the companion chip, in whole cycles."""
        return -int(-size // self.pin_bandwidth)
