"""The latency of one token in closed form, written once for the arrays of any framework: columns, open rows, transfers, exposed tails.

What is left out: refresh, and waiting for the bus where sums come faster than it takes them. The layout is the packed one with all
rounds of a chunk together, values in columns, and the companion chip overlapping (the defaults of ``program.Options``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.architecture import Transformer
from papers.pim_gpt.machine import ELEMENT, Machine
from papers.pim_gpt.series import WORK, Work


class Shape(NamedTuple):
    """A model in numbers; every field may be an array. ``gated``, ``rope``, ``layer_norm``, ``learned`` are 0 or 1."""

    depth: Any
    width: Any
    heads: Any
    kv_heads: Any
    head_dim: Any
    hidden: Any
    vocabulary: Any
    gated: Any
    rope: Any
    layer_norm: Any
    learned: Any


class Design(NamedTuple):
    """A machine in numbers; every field may be an array. Times are ns, ``pins`` is bytes a ns between a channel and the chip."""

    channels: Any
    banks: Any
    row: Any
    lanes: Any
    buffer: Any
    pins: Any
    adders: Any
    multipliers: Any
    depth: Any
    activate: Any
    precharge: Any
    cycle: Any
    column: Any
    write: Any


def shape(a: Transformer) -> Shape:
    return Shape(
        a.depth, a.width, a.heads, a.kv_heads, a.head_dim, a.hidden, a.vocabulary, int(a.feed_forward == "swiglu"),
        int(a.positions == "rope"), int(a.norm == "layer"), int(a.positions == "learned"),
    )  # fmt: skip


def design(m: Machine) -> Design:
    t = m.timing
    return Design(
        m.channels, m.banks, m.row, m.lanes, m.buffer, m.pin_bandwidth, m.adders, m.multipliers, m.depth, t.activate, t.precharge,
        t.cycle, t.column, t.write,
    )  # fmt: skip


def stacked(rows: list[Any], convert: Any) -> Any:
    """One Shape or Design whose fields are arrays over the list."""
    return type(rows[0])(*(convert([float(value) for value in column]) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class _Terms:
    xp: Any
    s: Shape
    d: Design

    def up(self, a: Any, b: Any) -> Any:
        """Rounded up. A quotient of whole numbers below 2^53 is exact where it is whole."""
        return self.xp.ceil(a / b)

    def larger(self, a: Any, b: Any) -> Any:
        return self.xp.where(a > b, a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        return self.xp.where(a < b, a, b)

    def bus(self, numbers: Any) -> Any:
        return self.up(ELEMENT * numbers, self.d.pins)

    def work(self, work: Mapping[str, Any], numbers: Any) -> Any:
        return self.larger(self.up(numbers * work["m"], self.d.multipliers), self.up(numbers * work["a"], self.d.adders))

    def columns(self, numbers: Any) -> Any:
        """Column accesses of a vector that is cut into chunks of the buffer."""
        d = self.d
        whole = self.xp.floor(numbers / d.buffer)
        return whole * (d.buffer / d.lanes) + self.up(numbers - whole * d.buffer, d.lanes)

    def product(self, outputs: Any, inputs: Any, follow: Mapping[str, Any], stages: int) -> Any:
        """From the vector in the companion chip to its product there, with what follows done to it."""
        d = self.d
        units, out = d.channels * d.banks, self.bus(d.banks)
        rounds, chunks = self.up(outputs, units), self.up(inputs, d.buffer)
        columns = self.columns(inputs)
        rows = self.up(rounds * columns, d.row / d.lanes)
        first = self.smaller(inputs, d.buffer)
        rest = inputs - first
        begin = self.larger(self.bus(first), d.activate)
        # Further chunks: the sums of the last round leave, then the buffer is filled anew.
        loads = self.up(ELEMENT * rest, d.pins) + (chunks - 1) * out
        gaps = (rows - 1) * (d.activate + d.precharge)
        memory = begin + rounds * columns * d.column + gaps + loads
        tail = self.work(follow, outputs - (rounds - 1) * units)
        # The companion chip may be what holds up; it begins with the first round of the last chunk.
        share = self.up(inputs - (chunks - 1) * d.buffer, d.lanes) / columns
        chip = memory * (1 - share + share / rounds) + out + (rounds - 1) * self.work(follow, units) + tail
        return self.larger(memory + out + tail, chip) + stages * d.depth


def _work(*works: tuple[Work, Any]) -> dict[str, Any]:
    """A sum of works, each with a factor that may be an array."""
    return {
        "m": sum((work.multiplications * factor for work, factor in works), 0.0),
        "a": sum((work.additions * factor for work, factor in works), 0.0),
    }


def latency(xp: Any, s: Shape, position: Any, d: Design) -> dict[str, Any]:
    """ns of the token at ``position`` by part: embedding, norms, projections (all matrices of the blocks), writes, attention, head."""
    t = _Terms(xp, s, d)
    heads, kv, seen = s.heads * s.head_dim, s.kv_heads * s.head_dim, position + 1
    one = 1.0 + 0.0 * s.depth
    chunks = _work((Work(0, 1, 0), t.up(s.width, d.buffer) - 1))["a"]
    wide = _work((Work(0, 1, 0), t.up(s.hidden, d.buffer) - 1))["a"]

    def add(work: dict[str, Any], more: Any) -> dict[str, Any]:
        return {"m": work["m"], "a": work["a"] + more}

    bias, residual = (WORK["bias"], one), (WORK["residual"], one)
    project = _work(bias, (WORK["scale"], one), (WORK["rope"], s.rope))
    bend = _work(bias, (WORK["silu"], s.gated), (WORK["gelu"], 1 - s.gated))
    norm_work = _work((WORK["layer_norm"], s.layer_norm), (WORK["rms_norm"], 1 - s.layer_norm))
    norm = t.work(norm_work, s.width) + (3 + s.layer_norm) * d.depth
    projections = (
        t.product(heads + 2 * kv, s.width, add(project, chunks), 1)
        + t.product(s.width, heads, add(_work(bias, residual), t.up(heads, d.buffer) - 1), 1)
        + t.product((1 + s.gated) * s.hidden, s.width, add(bend, chunks), 3)
        + t.product(s.width, s.hidden, add(_work(bias, residual), wide), 1)
    )
    parts = {
        "embedding": d.activate + t.bus(s.width) * (1 + 0 * s.learned) + t.work(_work(residual), s.width) + d.depth,
        "norms": s.depth * 2 * norm + norm,
        "projections": s.depth * projections,
        "writes": s.depth * _writes(t, kv),
        "attention": s.depth * _attention(t, heads, kv, seen),
        "head": t.product(s.vocabulary, s.width, add(_work((WORK["compare"], one)), chunks), 1),
    }
    return parts | {"total": sum(parts.values())}


def _features(t: _Terms) -> tuple[Any, Any]:
    """(features of a head in a bank, heads of a channel)"""
    s, d, spread = t.s, t.d, _spread(t)
    return t.up(s.head_dim, spread * d.banks), t.up(s.kv_heads * spread, d.channels)


def _spread(t: _Terms) -> Any:
    """Channels of a head's values."""
    return t.larger(t.xp.floor(t.d.channels / t.s.kv_heads), 1.0 + 0.0 * t.s.heads)


def _writes(t: _Terms, kv: Any) -> Any:
    """The channel that also has the key: until the last write has ended."""
    d = t.d
    features, heads = _features(t)
    one = t.larger(t.bus(d.lanes), d.column)
    bank = t.larger(d.cycle, d.activate + one + d.write + d.precharge)
    turn = t.larger(bank, d.banks * one)
    return (
        d.activate
        + t.larger(t.bus(kv), t.up(kv, d.lanes) * d.column)
        + (features * heads - 1) * turn
        + d.activate
        + d.banks * one
    )


def _attention(t: _Terms, heads: Any, kv: Any, seen: Any) -> Any:
    s, d = t.s, t.d
    units, gap, out = d.channels * d.banks, d.activate + d.precharge, t.bus(d.banks)
    slots = t.up(seen, units)
    per_row = t.larger(t.xp.floor(d.row / kv), 1.0 + 0.0 * kv)
    # Banks are closed after the writes, the row of the first keys is opened, the queries go out meanwhile.
    begin = t.larger(t.bus(t.smaller(heads, d.buffer)), d.write + d.precharge + d.activate)
    chunks, key_rows = t.up(heads, d.buffer), t.up(kv, d.row)
    rows = t.up(slots, per_row) * key_rows
    loads = (chunks - 1) * (t.bus(d.buffer) + out)
    score = begin + slots * (heads / d.lanes) * d.column + (rows - 1) * gap + loads + out
    softmax = _work((WORK["softmax"], 1.0))
    soft, lag = t.work(softmax, seen), WORK["softmax"].stages * d.depth
    # Heads leave the banks one after the other during the last slot of their chunk; moments from the last one's leaving.
    late = t.smaller(s.heads, d.buffer / s.head_dim)
    between = (s.head_dim / d.lanes) * d.column
    left = s.heads - (chunks - 1) * late
    chunk = slots * late * between + (rows / chunks) * gap + t.bus(d.buffer) + out
    of_last_chunk = -(left - 1) * between
    of_all = of_last_chunk - (chunks - 1) * chunk
    features, local = _features(t)
    group = local * s.heads / s.kv_heads
    columns = t.up(seen, d.lanes) * d.column
    visits = features * t.up(seen, t.smaller(d.row, d.buffer))
    period = t.larger(columns * features / visits + gap, d.cycle)
    load = t.bus(t.smaller(seen, d.buffer))
    inner = (visits - 1) * period + columns * features / visits
    each = t.larger(load + out, gap) + inner
    first = t.larger(load, d.activate) + inner
    # The last of the channels that have the most heads waits for this many of them before its first one.
    together = t.larger(s.heads - (group - 1) * d.channels / _spread(t), 1.0 + 0.0 * s.heads)
    # Either the softmax of the last head is the last to come, or the channels are still busy with the heads before it.
    ends = t.larger(soft, t.larger(of_last_chunk + left * soft, of_all + s.heads * soft))
    wave = t.larger(of_all + together * soft, of_all + (together - 1) * between + soft) + lag
    by_chip = ends + lag + first
    by_banks = t.larger(wave, 0.0 * wave) + first + (group - 1) * each
    return score + t.larger(by_chip, by_banks) + out
