"""Where each number of a matrix lies: channel, bank, row, column.

Outputs are dealt over the units in rounds, inputs are cut into chunks of the global buffer. A (round, chunk) pair is a run of
columns in every bank; the runs follow each other through the DRAM rows. ``packed`` lets a run begin where the last one ended,
so that every row is full; otherwise each begins a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from papers.pim_gpt.machine import Machine

Index = Int[np.ndarray, "..."]


@dataclass(frozen=True)
class Mapping:
    """A matrix (outputs, inputs) in memory; y = W x sums over inputs.

    Attributes:
        base: first DRAM row in each bank.
        chunks_inside: visit all chunks of a round before the next round (the partial sum stays in the bank, the vector is
            sent anew for every chunk of every round) instead of all rounds of a chunk (partial sums go to the companion chip).
        strict: refuse inputs that are no multiple of the lanes; otherwise the last column is filled with zeros.
    """

    machine: Machine
    outputs: int
    inputs: int
    base: int = 0
    packed: bool = True
    chunks_inside: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.outputs < 1 or self.inputs < 1:
            raise ValueError(f"a matrix of {self.outputs} x {self.inputs} is empty; wanted at least one output and one input")
        if self.strict and self.inputs % self.machine.lanes:
            raise ValueError(
                f"{self.inputs} inputs are no multiple of the {self.machine.lanes} lanes; pad the matrix to "
                f"{-(-self.inputs // self.machine.lanes) * self.machine.lanes} inputs or take strict=False, which fills with zeros"
            )

    @property
    def rounds(self) -> int:
        return -(-self.outputs // self.machine.units)

    @property
    def chunks(self) -> int:
        return -(-self.inputs // self.machine.buffer)

    @property
    def padding(self) -> int:
        """Zeros behind each row of the matrix."""
        return -self.inputs % self.machine.lanes

    @cached_property
    def runs(self) -> tuple[Index, Index, Index, Index]:
        """(round, chunk, columns, first column counted through the rows) of every run, in the order of visits."""
        rounds, chunks = np.arange(self.rounds), np.arange(self.chunks)
        if self.chunks_inside:
            each, chunk = (grid.ravel() for grid in np.meshgrid(rounds, chunks, indexing="ij"))
        else:
            chunk, each = (grid.ravel() for grid in np.meshgrid(chunks, rounds, indexing="ij"))
        m = self.machine
        length = -(-np.minimum(m.buffer, self.inputs - chunk * m.buffer) // m.lanes)
        space = length if self.packed else -(-length // m.columns) * m.columns
        return each, chunk, length, np.cumsum(space) - space

    @property
    def rows(self) -> int:
        """DRAM rows that the matrix takes in every bank."""
        _, _, length, start = self.runs
        return -(-int(start[-1] + length[-1]) // self.machine.columns)

    def place(self, output: Index, inside: Index) -> tuple[Index, Index, Index, Index]:
        """(channel, bank, row, column) of the numbers W[output, inside]; a column is one number wide."""
        m = self.machine
        _, _, _, start = self.runs
        unit, chunk = output % m.units, inside // m.buffer
        each = output // m.units
        run = each * self.chunks + chunk if self.chunks_inside else chunk * self.rounds + each
        column = start[run] + inside % m.buffer // m.lanes
        row, access = column // m.columns, column % m.columns
        return unit % m.channels, unit // m.channels, self.base + row, access * m.lanes + inside % m.lanes

    def find(self, channel: Index, bank: Index, row: Index, column: Index) -> tuple[Index, Index]:
        """The inverse of :meth:`place`: (output, input), or (-1, -1) where nothing of the matrix lies."""
        m = self.machine
        each, chunk, length, start = self.runs
        position = (row - self.base) * m.columns + column // m.lanes
        run = np.clip(np.searchsorted(start, position, side="right") - 1, 0, len(start) - 1)
        output = each[run] * m.units + bank * m.channels + channel
        inside = chunk[run] * m.buffer + (position - start[run]) * m.lanes + column % m.lanes
        there = (position >= 0) & (position - start[run] < length[run]) & (output < self.outputs) & (inside < self.inputs)
        return np.where(there, output, -1), np.where(there, inside, -1)
