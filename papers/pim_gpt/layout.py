"""Where a model lies in memory: its matrices, and for each layer the keys and values of all positions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from common.architecture import Transformer
from papers.pim_gpt.machine import ELEMENT, Machine
from papers.pim_gpt.mapping import Mapping


@dataclass(frozen=True)
class Options:
    """How the model lies in memory, and what may happen at once.

    Attributes:
        tokens: positions that keys and values are reserved for.
        packed, chunks_inside: see :class:`papers.pim_gpt.mapping.Mapping`.
        value_rows: the naive layout, a row for each token's value; the product with it then has to be made by the companion chip.
        overlap: the companion chip works on what has left the banks while they go on.
    """

    tokens: int = 1024
    packed: bool = True
    chunks_inside: bool = False
    value_rows: bool = False
    overlap: bool = True


@dataclass(frozen=True)
class Layout:
    """A model in memory: a mapping for each matrix, rows for keys and values of every layer.

    Raises:
        ValueError: the model does not fit, a head does not divide a row, or there are experts.
    """

    machine: Machine
    architecture: Transformer
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        a, m = self.architecture, self.machine
        if m.row % a.head_dim or a.head_dim % m.lanes:
            raise ValueError(
                f"heads of {a.head_dim} neither divide a row of {m.row} nor fill columns of {m.lanes}; several heads share a row, "
                "so take a head_dim that does both, such as 64"
            )
        if a.experts or a.output_norm or not a.tied:
            raise ValueError("experts, output_norm and untied heads are not mapped; take a plain decoder with a tied head")
        if self.options.tokens > a.context:
            raise ValueError(f"{self.options.tokens} reserved tokens are more than the model's context of {a.context}")
        if self.rows > m.rows:
            need = self.rows * m.units * m.row * ELEMENT
            raise ValueError(
                f"the model takes {need / 2**30:.2f} GiB with its keys and values, the memory has {m.capacity / 2**30:.2f} GiB; "
                "give it more channels or rows, or take a smaller model"
            )

    @cached_property
    def matrices(self) -> dict[str, Mapping]:
        """By name: q, k and v of a layer are one matrix, gate and up another."""
        a = self.architecture
        heads, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        up = (2 if a.feed_forward == "swiglu" else 1) * a.hidden
        block = {"qkv": (heads + 2 * kv, a.width), "output": (a.width, heads), "up": (up, a.width), "down": (a.width, a.hidden)}
        shapes = {f"{layer}.{name}": shape for layer in range(a.depth) for name, shape in block.items()}
        shapes["head"] = (a.vocabulary, a.width)
        if a.positions == "learned":
            shapes["positions"] = (a.context, a.width)
        found: dict[str, Mapping] = {}
        base, like = 0, dict[Any, Mapping]()
        for name, (outputs, inputs) in shapes.items():
            # One mapping for each shape, moved: its runs are worked out once.
            first = like.setdefault(
                (outputs, inputs),
                Mapping(self.machine, outputs, inputs, 0, self.options.packed, self.options.chunks_inside),
            )
            moved = replace(first, base=base)
            moved.__dict__["runs"] = first.runs
            found[name] = moved
            base += moved.rows
        return found

    @property
    def weight_rows_of_a_layer(self) -> int:
        return sum(self.matrices[f"0.{name}"].rows for name in ("qkv", "output", "up", "down"))

    @cached_property
    def weight_rows(self) -> int:
        return max(each.base + each.rows for each in self.matrices.values())

    @property
    def slots(self) -> int:
        """Tokens of each unit, as far as keys go: token j lies in unit j % units."""
        return -(-self.options.tokens // self.machine.units)

    @property
    def slot_rows(self) -> int:
        return -(-self.architecture.kv_heads * self.architecture.head_dim // self.machine.row)

    @property
    def slots_per_row(self) -> int:
        return max(1, self.machine.row // (self.architecture.kv_heads * self.architecture.head_dim))

    @property
    def key_rows(self) -> int:
        """Rows of a layer's keys in each bank."""
        return self.slots * self.slot_rows if self.slot_rows > 1 else -(-self.slots // self.slots_per_row)

    @property
    def spread(self) -> int:
        """Channels that the values of one head are spread over; with more heads than channels each has one."""
        return max(1, self.machine.channels // self.architecture.kv_heads)

    @property
    def features(self) -> int:
        """Features of a head in each bank of its channels."""
        return -(-self.architecture.head_dim // (self.spread * self.machine.banks))

    @property
    def feature_rows(self) -> int:
        return -(-self.options.tokens // self.machine.row)

    @property
    def value_rows(self) -> int:
        if self.options.value_rows:
            return self.key_rows
        heads = -(-self.architecture.kv_heads * self.spread // self.machine.channels)
        return heads * self.features * self.feature_rows

    @property
    def rows(self) -> int:
        """Rows of each bank that the model takes with all its keys and values."""
        return self.weight_rows + self.architecture.depth * (self.key_rows + self.value_rows)

    def slot(self, slot: Any, head: Any) -> tuple[Any, Any]:
        """(row, column access) of a key-value head in a slot, from the first row of the keys."""
        m, inside = self.machine, head * self.architecture.head_dim
        width = self.architecture.kv_heads * self.architecture.head_dim
        row = slot * self.slot_rows + inside // m.row if self.slot_rows > 1 else slot // self.slots_per_row + 0 * inside
        shift = 0 if self.slot_rows > 1 else slot % self.slots_per_row * (width // m.lanes)
        return row, shift + inside % m.row // m.lanes

    def value(self, head: Any, feature: Any) -> tuple[Any, Any, Any]:
        """(channel, bank, row) of a feature of a key-value head, from the first row of the values; tokens run along the row."""
        m, over = self.machine, self.spread * self.machine.banks
        unit, turn = feature % over, feature // over
        lane = head * self.spread + unit % self.spread
        row = (lane // m.channels * self.features + turn) * self.feature_rows
        return lane % m.channels, unit // self.spread, row
