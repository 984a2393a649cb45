"""The functional mode: the same instructions that the simulator times, executed on the numbers in the memory image.

Weights lie in banks as the mapping says. A MAC multiplies one column of every bank with the buffer, adds the products in a binary
tree and adds that to the bank's sum, in float32; sums leave the bank as BF16. The companion chip's operators are the series of
:mod:`papers.pim_gpt.series`, in float32, each result rounded to BF16. ``exact`` switches all rounding to BF16 off, which leaves
nothing to differ from a float32 model but a wrong place or a wrong order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from einops import rearrange
from jaxtyping import Float32, Int64

from common.models import EPSILON, rotary_table
from papers.pim_gpt import series
from papers.pim_gpt.layout import Layout
from papers.pim_gpt.program import Code, F, Op, Phase, softmax_scale, token

Vector = Float32[np.ndarray, "..."]


def rounded(x: Any) -> Vector:
    """The nearest BF16, ties to even, as float32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def _plain(x: Any) -> Vector:
    return np.asarray(x, np.float32)


class Memory:
    """The banks, the buffers and the units with their sums; the image holds BF16 numbers in float32 arrays."""

    def __init__(self, layout: Layout, exact: bool = False) -> None:
        m = self.machine = layout.machine
        self.cut: Callable[[Any], Vector] = _plain if exact else rounded
        self.image = np.zeros((m.channels, m.banks, layout.rows, m.row), np.float32)
        self.buffer = np.zeros((m.channels, m.buffer), np.float32)
        self.sums = np.zeros((m.channels, m.banks), np.float32)

    def store(self, layout: Layout, name: str, matrix: Any) -> None:
        """Put a matrix (outputs, inputs) where its mapping says."""
        mapping = layout.matrices[name]
        if matrix.shape != (mapping.outputs, mapping.inputs):
            raise ValueError(f"{name} is {matrix.shape}; the mapping has room for {(mapping.outputs, mapping.inputs)}")
        outputs, inputs = np.arange(mapping.outputs)[:, None], np.arange(mapping.inputs)
        self.image[mapping.place(outputs, inputs)] = self.cut(matrix)

    def run(self, code: Code, sources: Sequence[Vector], tags: int = 0) -> Float32[np.ndarray, "tag channel bank"]:
        """Execute memory instructions; sums that leave the banks are added up by their tag. READs come back in order, flat."""
        m, read = self.machine, []
        found = np.zeros((tags, m.channels, m.banks), np.float32)
        for op, channel, bank, row, column, count, begin, out, tag in _lockstep(code):
            if op == Op.LOAD:
                self.buffer[channel] = 0
                self.buffer[channel, :count] = sources[tag][column : column + count]
            elif op == Op.MAC:
                width = count * m.lanes
                weights = self.image[channel, :, row, column * m.lanes : column * m.lanes + width]
                vector = self.buffer[channel, begin * m.lanes : begin * m.lanes + width]
                products = rearrange(
                    weights * vector[:, None], "channel bank (column lane) -> channel bank column lane", lane=m.lanes
                )
                while products.shape[-1] > 1:
                    products = products[..., 0::2] + products[..., 1::2]
                terms = np.concatenate([self.sums[channel, :, None], products[..., 0]], -1)
                self.sums[channel] = np.add.accumulate(terms, -1)[..., -1]
                if out:
                    found[tag, channel] += self.cut(self.sums[channel])
                    self.sums[channel] = 0
            elif op == Op.WRITE and tag < 0:
                width = count * m.lanes
                self.image[channel, bank, row, column * m.lanes : column * m.lanes + width] = self.cut(
                    sources[0][begin : begin + width]
                )
            elif op == Op.WRITE:
                self.image[channel, bank, row, column * m.lanes + tag] = self.cut(sources[0][begin])
            elif op == Op.READ:
                read.append(self.image[channel[0], bank, row, column * m.lanes : (column + count) * m.lanes])
        return np.concatenate(read)[None, None] if read else found


_NAMES = ("op", "bank", "row", "column", "count", "buffer", "out", "tag")


def _lockstep(code: Code) -> Any:
    """Instructions, those together that only differ in their channel."""
    same = code[:, [F[name] for name in _NAMES]]
    first = np.flatnonzero(np.r_[True, (same[1:] != same[:-1]).any(1)])
    for begin, end in zip(first, np.r_[first[1:], len(code)], strict=True):
        op, bank, row, column, count, buffer, out, tag = same[begin].tolist()
        if op in (Op.LOAD, Op.MAC):
            yield op, code[begin:end, F["channel"]], bank, row, column, count, buffer, out, tag
        else:
            for i in range(begin, end):
                yield op, code[i : i + 1, F["channel"]], bank, row, column, count, buffer, out, tag


class Decoder:
    """A model that generates from memory: one call for each token."""

    def __init__(self, layout: Layout, weights: Mapping[str, Any], exact: bool = False) -> None:
        if layout.options.value_rows:
            raise ValueError("values in rows are the naive layout, which is only timed; take value_rows=False to compute")
        self.layout, self.memory = layout, Memory(layout, exact)
        self.cut = self.memory.cut
        a = self.architecture = layout.architecture
        self.weights = {name: self.cut(value) for name, value in weights.items() if "norm" in name}
        for layer in range(a.depth):
            block = f"blocks.{layer}."
            qkv = [weights[f"{block}attention.{name}.weight"] for name in ("query", "key", "value")]
            up = ("gate", "up") if a.feed_forward == "swiglu" else ("up",)
            self.memory.store(layout, f"{layer}.qkv", np.concatenate(qkv))
            self.memory.store(layout, f"{layer}.output", weights[f"{block}attention.output.weight"])
            self.memory.store(
                layout, f"{layer}.up", np.concatenate([weights[f"{block}feed_forward.{name}.weight"] for name in up])
            )
            self.memory.store(layout, f"{layer}.down", weights[f"{block}feed_forward.down.weight"])
        self.memory.store(layout, "head", weights["embedding.weight"])
        if a.positions == "learned":
            self.memory.store(layout, "positions", weights["positions.weight"])
        self.rotary = self.cut(rotary_table(a.context, a.head_dim)) if a.positions == "rope" else None
        self.position = 0

    def generate(self, tokens: Int64[np.ndarray, " seq"]) -> Float32[np.ndarray, "seq vocabulary"]:
        """Logits behind each of the tokens, which follow what was given before."""
        return np.stack([self.step(int(each)) for each in tokens])

    def step(self, word: int) -> Float32[np.ndarray, " vocabulary"]:
        a, layout = self.architecture, self.layout
        program = token(layout, self.position, word)
        seen = self.position + 1
        x = np.zeros(a.width, np.float32)
        state: dict[str, Any] = {}
        for phase in program.phases:
            code = program.code[phase.first : phase.last]
            code = code[code[:, F["op"]] != Op.ASIC]
            if phase.name in ("head row", "positions row"):
                x = self.cut(x + self.memory.run(code, ())[0, 0, : a.width])
            elif phase.name in ("keys", "values"):
                self.memory.run(code, [state["k" if phase.name == "keys" else "v"]])
            elif phase.name == "scores":
                slots = -(-seen // layout.machine.units)
                found = self.memory.run(code, [state["q"]], a.heads * slots)
                scores = rearrange(found, "(head slot) channel bank -> head (slot bank channel)", head=a.heads)[:, :seen]
                state["p"] = self.cut(series.softmax(scores))
            elif phase.name == "mix":
                found = self.memory.run(code, list(state["p"]), a.heads * layout.features)
                head, feature = np.arange(a.heads)[:, None], np.arange(a.head_dim)
                channel, bank, _ = layout.value(head * a.kv_heads // a.heads, feature)
                turn = feature // (layout.spread * layout.machine.banks)
                state["y"] = self.cut(found[head * layout.features + turn, channel, bank]).ravel()
            else:
                x = self._product(phase, code, x, state)
        self.position += 1
        return state["logits"]

    def _product(self, phase: Phase, code: Code, x: Vector, state: dict[str, Any]) -> Vector:
        """A matrix and what the companion chip does before and behind it; returns the residual stream."""
        a, layer = self.architecture, f"{phase.layer}."
        mapping = self.layout.matrices["head" if phase.name == "head" else layer + phase.name]
        source = {
            "qkv": f"blocks.{layer}attention_norm", "up": f"blocks.{layer}feed_forward_norm", "head": "norm"
        }.get(phase.name)  # fmt: skip
        vector = state["y"] if source is None else self._normalised(x, source)
        found = self.memory.run(code, [vector], mapping.rounds)
        y = self.cut(rearrange(found, "round channel bank -> (round bank channel)")[: mapping.outputs])
        if phase.name == "head":
            state["logits"] = y
        elif phase.name == "qkv":
            q, k, v = np.split(y, np.cumsum([a.heads, a.kv_heads]) * a.head_dim)
            state |= {"q": self.cut(self._placed(q) * np.float32(softmax_scale(a))), "k": self._placed(k), "v": v}
        elif phase.name == "up":
            if a.feed_forward == "swiglu":
                gate, up = np.split(y, 2)
                state["y"] = self.cut(self.cut(series.silu(gate)) * up)
            else:
                state["y"] = self.cut(series.gelu(y))
        else:
            x = self.cut(x + y)
        return x

    def _normalised(self, x: Vector, name: str) -> Vector:
        shift = self.weights.get(f"{name}.bias")
        return self.cut(series.normalise(x, self.weights[f"{name}.weight"], shift, self.architecture.norm == "layer", EPSILON))

    def _placed(self, x: Vector) -> Vector:
        """Queries and keys turned by their position."""
        if self.rotary is None:
            return x
        cos, sin = self.rotary[:, self.position]
        first, second = rearrange(x, "(head half dim) -> half head dim", half=2, head=len(x) // self.architecture.head_dim)
        turned = np.stack([first * cos - second * sin, second * cos + first * sin])
        return self.cut(rearrange(turned, "half head dim -> (head half dim)"))
