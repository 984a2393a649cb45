"""Instructions of one token: what the companion chip sends to the channels, and what it computes itself.

An instruction is a row of whole numbers (:data:`FIELDS`). It may wait for a signal and give one; a signal is given when all
instructions with its number have ended. Each channel and the companion chip work through theirs in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Int64

from common.architecture import Transformer
from papers.pim_gpt.layout import Layout
from papers.pim_gpt.machine import ELEMENT
from papers.pim_gpt.mapping import Mapping
from papers.pim_gpt.series import WORK, Work


class Op(IntEnum):
    LOAD = 0  # numbers from the companion chip into a channel's global buffer (WRGB)
    MAC = 1  # all banks of a channel: columns of one row times the buffer (ACT, MAC, RDMAC, PRE as needed)
    WRITE = 2  # columns of one bank (WRK, WRV)
    READ = 3  # columns of one bank to the companion chip
    ASIC = 4  # arithmetic of the companion chip


FIELDS = ("op", "channel", "bank", "row", "column", "count", "buffer", "out", "close", "wait", "signal", "tag", "time")
"""column, buffer: in column accesses, but the first number of the source for LOAD and WRITE's buffer. count: column accesses (MAC,
WRITE, READ) or numbers (LOAD). out: whether MAC's sums leave the banks; whether a WRITE or READ begins a block. time: ns on the
bus (LOAD, WRITE, READ), in the unit (ASIC); buffer of ASIC: ns from its last cycle to its result. tag: see :class:`Phase`."""
F = {name: i for i, name in enumerate(FIELDS)}
Code = Int64[np.ndarray, "instruction field"]


@dataclass(frozen=True)
class Phase:
    """A part of a program that the functional mode gives a meaning to: ``first`` to ``last`` are its instructions.

    Results of MAC are told apart by ``tag``: the round of a matrix, head * slots + slot of scores, head * features + feature of
    the mix. The tag of LOAD in the mix is the head whose weights are loaded; the tag of WRITE is the place in the column of
    a single number, or -1 for whole columns.
    """

    name: str
    layer: int
    first: int
    last: int


@dataclass(frozen=True)
class Program:
    code: Code
    phases: tuple[Phase, ...]
    signals: int


def token(layout: Layout, position: int, word: int = 0) -> Program:
    """The program of one token at a position, whose embedding is that of ``word``.

    Raises:
        ValueError: keys and values are not reserved that far.
    """
    if not 0 <= position < layout.options.tokens:
        raise ValueError(
            f"position {position} is outside the {layout.options.tokens} tokens that keys and values are reserved for; reserve more"
        )
    return _Writer(layout, position).whole(word)


class _Writer:
    """Writes a program block by block."""

    def __init__(self, layout: Layout, position: int) -> None:
        self.layout, self.position = layout, position
        self.machine, self.architecture, self.options = layout.machine, layout.architecture, layout.options
        self.blocks: list[Code] = []
        self.length, self.signals = 0, 0
        self.phases: list[Phase] = []

    def whole(self, word: int) -> Program:
        a, work = self.architecture, WORK
        norm = work["rms_norm" if a.norm == "rms" else "layer_norm"]
        project = work["bias"] + work["scale"] + (work["rope"] if a.positions == "rope" else Work())
        bend = work["bias"] + work["silu" if a.feed_forward == "swiglu" else "gelu"]
        x = self.embedding(word)
        signals, blocks, phases = self.signals, len(self.blocks), len(self.phases)
        y = self.asic(norm, a.width, x)
        qkv = self.product("0.qkv", y, project)
        self.write(qkv)
        mixed = self.attention(qkv)
        x = self.product("0.output", mixed, work["bias"] + work["residual"])
        y = self.asic(norm, a.width, x)
        y = self.product("0.up", y, bend)
        self.product("0.down", y, work["bias"] + work["residual"])
        self.repeat(np.concatenate(self.blocks[blocks:]), self.signals - signals, self.phases[phases:])
        x = self.signals - 1
        self.product("head", self.asic(norm, a.width, x), work["compare"], a.depth)
        return Program(np.concatenate(self.blocks), tuple(self.phases), self.signals)

    def repeat(self, code: Code, signals: int, phases: list[Phase]) -> None:
        """The other layers: the first one's instructions with rows and signals moved on.

        A layer's last signal is the number before the next layer's first, as that of the embedding is before the first layer's.
        """
        layout = self.layout
        per_layer = layout.weight_rows_of_a_layer
        keys = code[:, F["row"]] >= layout.weight_rows
        rows = np.where(keys, layout.key_rows + layout.value_rows, per_layer) * np.isin(
            code[:, F["op"]], (Op.MAC, Op.WRITE, Op.READ)
        )
        for layer in range(1, self.architecture.depth):
            moved = code.copy()
            moved[:, F["row"]] += layer * rows
            for name in ("wait", "signal"):
                moved[:, F[name]] += layer * signals * (moved[:, F[name]] >= 0)
            shift = layer * len(code)
            self.phases += [Phase(each.name, layer, each.first + shift, each.last + shift) for each in phases]
            self.blocks.append(moved)
            self.length += len(code)
            self.signals += signals

    def embedding(self, word: int) -> int:
        """The row of the tied embedding, and of the positions, one bank each."""
        ready = self.signal()
        for name, index in (("head", word), ("positions", self.position)):
            mapping = self.layout.matrices.get(name)
            if mapping is None:
                continue
            first, m = self.length, self.machine
            inside = np.arange(0, mapping.inputs, m.lanes)
            channel, bank, row, column = mapping.place(np.full_like(inside, index), inside)
            new = np.flatnonzero(np.diff(row, prepend=-1))
            count = np.diff(new, append=len(inside))
            self.emit(
                Op.READ, channel=channel[new], bank=bank[new], row=row[new], column=column[new] // m.lanes, count=count, out=1,
                time=[m.bus(int(c) * m.lanes * ELEMENT) for c in count], signal=ready,
            )  # fmt: skip
            self.phase(name + " row", 0, first)
        return self.asic(WORK["residual"], self.architecture.width, ready)

    def product(self, name: str, wait: int, follow: Work, layer: int = 0) -> int:
        """y = W x and what the companion chip does to each number of y; the signal of its end."""
        m, mapping, first = self.machine, self.layout.matrices[name], self.length
        steps = _steps(mapping)
        signal = self.signals
        self.signals += mapping.rounds
        done = self.signal()
        each = {key: value.repeat(m.channels) for key, value in steps.items()}
        last = each.pop("last")
        each["row"] += mapping.base
        each["signal"] = np.where(last, signal + each["tag"], -1)
        self.emit(each.pop("op"), channel=np.tile(np.arange(m.channels), len(last) // m.channels), wait=wait, **each)
        outputs = np.minimum(m.units, mapping.outputs - m.units * np.arange(mapping.rounds))
        add = 0 if mapping.chunks_inside else mapping.chunks - 1
        follow = follow + Work(0, add, 0)
        if self.options.overlap:
            self.emit(
                Op.ASIC, wait=signal + np.arange(mapping.rounds), signal=done, buffer=follow.stages * m.depth,
                time=[follow.time(m, int(n)) for n in outputs],
            )  # fmt: skip
        else:
            # In order and after the last round: the companion chip has waited for all of them.
            self.emit(Op.ASIC, wait=signal + np.arange(mapping.rounds))
            self.emit(Op.ASIC, signal=done, buffer=follow.stages * m.depth, time=follow.time(m, mapping.outputs))
        self.phase(name, layer, first)
        return done

    def write(self, wait: int) -> None:
        """Keys of this position as a row, values as a column (or, the naive way, as a row too)."""
        m, a, first = self.machine, self.architecture, self.length
        unit, slot = self.position % m.units, self.position // m.units
        width = a.kv_heads * a.head_dim
        bases = [self.layout.weight_rows]
        if self.options.value_rows:
            bases.append(bases[0] + self.layout.key_rows)
        for base in bases:
            offset = np.arange(0, width, m.row)
            row, column = self.layout.slot(slot, offset // a.head_dim)
            count = np.minimum(m.row, width - offset) // m.lanes
            self.emit(
                Op.WRITE, channel=unit % m.channels, bank=unit // m.channels, row=base + row, column=column, count=count,
                buffer=offset, out=(offset == 0) & (base == bases[0]), tag=-1, wait=wait,
                time=[m.bus(int(c) * m.lanes * ELEMENT) for c in count],
            )  # fmt: skip
        self.phase("keys", 0, first)
        if self.options.value_rows:
            return
        first = self.length
        head, feature = (grid.ravel() for grid in np.meshgrid(np.arange(a.kv_heads), np.arange(a.head_dim), indexing="ij"))
        channel, bank, row = self.layout.value(head, feature)
        # Neighbours on the bus belong to different banks, which then open and close their rows at once.
        order = np.lexsort((bank, row, channel))
        begins = np.diff(channel[order], prepend=-1) != 0
        self.emit(
            Op.WRITE, channel=channel[order], bank=bank[order],
            row=bases[0] + self.layout.key_rows + row[order] + self.position // m.row,
            column=self.position % m.row // m.lanes, count=1, buffer=(head * a.head_dim + feature)[order], out=begins,
            tag=self.position % m.lanes, wait=wait, time=m.bus(m.lanes * ELEMENT),
        )  # fmt: skip
        self.phase("values", 0, first)

    def attention(self, wait: int) -> int:
        m, a = self.machine, self.architecture
        scored = self.scores(wait)
        weighed = self.signals
        self.signals += a.heads
        work = WORK["softmax"]
        self.emit(
            Op.ASIC, wait=scored + np.arange(a.heads) if self.options.overlap else scored + a.heads - 1,
            signal=weighed + np.arange(a.heads), time=work.time(m, self.position + 1), buffer=work.stages * m.depth,
        )  # fmt: skip
        if not self.options.overlap:
            weighed += a.heads - 1
        return self.mix_rows(weighed) if self.options.value_rows else self.mix(weighed)

    def scores(self, wait: int) -> int:
        """q k^T: all heads of a slot while its row is open; returns the first of the heads' signals."""
        m, a, first = self.machine, self.architecture, self.length
        base, slots = self.layout.weight_rows, -(-(self.position + 1) // m.units)
        signal = self.signals
        self.signals += a.heads
        for begin in range(0, a.heads * a.head_dim, m.buffer):
            numbers = min(m.buffer, a.heads * a.head_dim - begin)
            self.emit(
                Op.LOAD,
                channel=np.arange(m.channels),
                column=begin,
                count=numbers,
                time=m.bus(numbers * ELEMENT),
                wait=wait,
                tag=0,
            )
            heads = np.arange(begin // a.head_dim, (begin + numbers) // a.head_dim)
            slot, head = (grid.ravel() for grid in np.meshgrid(np.arange(slots), heads, indexing="ij"))
            row, column = self.layout.slot(slot, head * a.kv_heads // a.heads)
            fields = {
                "row": base + row, "column": column, "buffer": (head * a.head_dim - begin) // m.lanes, "tag": head * slots + slot,
                "close": np.diff(row, append=-1) != 0, "signal": np.where(slot == slots - 1, signal + head, -1),
            }  # fmt: skip
            fields = {key: np.asarray(value).repeat(m.channels) for key, value in fields.items()}
            self.emit(
                Op.MAC, channel=np.tile(np.arange(m.channels), len(head)), count=a.head_dim // m.lanes, out=1, wait=wait, **fields
            )
        self.phase("scores", 0, first)
        return signal

    def mix(self, weighed: int) -> int:
        """p V: the weights of a head go to its channels, whose banks have its features."""
        m, a, layout, first = self.machine, self.architecture, self.layout, self.length
        base, seen = layout.weight_rows + layout.key_rows, self.position + 1
        done, step = self.signal(), min(m.row, m.buffer)
        for head in range(a.heads):
            shared = head * a.kv_heads // a.heads
            channels = np.unique(layout.value(shared, np.arange(layout.spread))[0])
            wait = weighed + head if self.options.overlap else weighed
            for begin in range(0, seen, step):
                if begin % m.buffer == 0:
                    numbers = min(m.buffer, seen - begin)
                    time = m.bus(numbers * ELEMENT)
                    self.emit(Op.LOAD, channel=channels, column=begin, count=numbers, time=time, wait=wait, tag=head)
                feature = np.arange(layout.features)
                row = layout.value(shared, 0)[2] + feature * layout.feature_rows + begin // m.row
                self.emit(
                    Op.MAC, channel=np.tile(channels, layout.features), row=base + row.repeat(len(channels)),
                    column=begin % m.row // m.lanes, count=-(-min(step, seen - begin) // m.lanes),
                    buffer=begin % m.buffer // m.lanes, out=1, close=1, wait=wait, signal=done,
                    tag=(head * layout.features + feature).repeat(len(channels)),
                )  # fmt: skip
        self.phase("mix", 0, first)
        return done

    def mix_rows(self, weighed: int) -> int:
        """The naive layout: every value goes to the companion chip, which multiplies."""
        m, a, layout, first = self.machine, self.architecture, self.layout, self.length
        base, width = layout.weight_rows + layout.key_rows, a.kv_heads * a.head_dim
        ready, done = self.signal(), self.signal()
        for offset in range(0, width, m.row):
            j = np.arange(self.position + 1)
            row, column = layout.slot(j // m.units, offset // a.head_dim)
            count = min(m.row, width - offset) // m.lanes
            self.emit(
                Op.READ, channel=j % m.units % m.channels, bank=j % m.units // m.channels, row=base + row, column=column,
                count=count, time=m.bus(count * m.lanes * ELEMENT), out=j < m.channels, signal=ready,
            )  # fmt: skip
        self.emit(Op.ASIC, wait=weighed + (a.heads - 1 if self.options.overlap else 0))
        work = Work(1, 1, 1)
        self.emit(Op.ASIC, wait=ready, signal=done, buffer=m.depth, time=work.time(m, (self.position + 1) * a.heads * a.head_dim))
        self.phase("mix by rows", 0, first)
        return done

    def asic(self, work: Work, numbers: int, wait: int) -> int:
        done = self.signal()
        self.emit(Op.ASIC, wait=wait, signal=done, time=work.time(self.machine, numbers), buffer=work.stages * self.machine.depth)
        return done

    def signal(self) -> int:
        self.signals += 1
        return self.signals - 1

    def phase(self, name: str, layer: int, first: int) -> None:
        self.phases.append(Phase(name.rsplit(".", 1)[-1], layer, first, self.length))

    def emit(self, op: Any, **fields: Any) -> None:
        values = {"wait": -1, "signal": -1, **fields, "op": op}
        size = max(np.size(value) for value in values.values())
        block = np.zeros((size, len(FIELDS)), np.int64)
        for name, value in values.items():
            block[:, F[name]] = value
        self.blocks.append(block)
        self.length += size


_KEPT: dict[tuple[Any, ...], dict[str, Any]] = {}


def _steps(mapping: Mapping) -> dict[str, Any]:
    """The loads and visits of a matrix in any one channel, with rows from its first and the round as tag."""
    key = (mapping.machine, mapping.outputs, mapping.inputs, mapping.packed, mapping.chunks_inside)
    if key in _KEPT:
        return dict(_KEPT[key])
    m = mapping.machine
    each, chunk, length, start = mapping.runs
    total = int(start[-1] + length[-1])
    # A visit ends where its run or its DRAM row ends.
    cuts = np.unique(np.concatenate([start, start + length, np.arange(0, total, m.columns)]))
    begin, end = cuts[:-1], cuts[1:]
    run = np.searchsorted(start, begin, side="right") - 1
    inside = begin < start[run] + length[run]
    begin, end, run = begin[inside], end[inside], run[inside]
    whole = end == start[run] + length[run]
    last = whole & (chunk[run] == mapping.chunks - 1)
    row = begin // m.columns
    visits = {
        "op": np.full(len(run), Op.MAC), "row": row, "column": begin % m.columns, "count": end - begin, "buffer": begin - start[run],
        "out": last if mapping.chunks_inside else whole, "close": np.diff(row, append=-1) != 0, "last": last, "tag": each[run],
        "time": np.zeros(len(run), np.int64),
    }  # fmt: skip
    fresh = np.flatnonzero((begin == start[run]) & (np.diff(chunk[run], prepend=-1) != 0))
    numbers = np.minimum(m.buffer, mapping.inputs - chunk[run[fresh]] * m.buffer)
    loads = {name: np.zeros(len(fresh), np.int64) for name in visits}
    loads |= {
        "column": chunk[run[fresh]] * m.buffer,
        "count": numbers,
        "time": np.array([m.bus(int(n) * ELEMENT) for n in numbers], np.int64),
        "last": np.zeros(len(fresh), bool),
    }
    steps = {name: np.insert(value.astype(loads[name].dtype), fresh, loads[name]) for name, value in visits.items()}
    _KEPT[key] = steps
    return dict(steps)


def softmax_scale(architecture: Transformer) -> float:
    """What queries are multiplied with."""
    return 1 / math.sqrt(architecture.head_dim)
