"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option
from papers.pim_gpt.layout import Options
from papers.pim_gpt.machine import Machine, Timing


class Values(Enum):
    """How values lie in memory."""

    columns = "columns"  # transposed: tokens run along the row, a new token is a column
    rows = "rows"  # a row for each token: naive, the companion chip has to multiply


class Chunks(Enum):
    """Order of visits of a matrix that is wider than the buffer."""

    outside = "outside"  # all rounds of a chunk, then the next chunk
    inside = "inside"  # all chunks of a round: the vector is sent anew each time


class Fault(Enum):
    none = "none"
    swapped_banks = "swapped_banks"


@dataclass(frozen=True)
class Config:
    seed: int = option(2310, "seeds random weights and designs")
    tokens: int = option(1024, "generated tokens, for which keys and values are reserved")
    stride: int = option(64, "every so many positions are simulated, and the last; those between follow the closed form")
    fit_stride: int = option(64, "every so many positions of GPT3-XL are simulated for the growth with the position")

    values: Values = option(Values.columns, "layout of values; rows is a control")
    chunks: Chunks = option(Chunks.outside, "order of visits of wide matrices; inside is a control")
    packed: bool = option(True, "a run of columns begins where the last one ended, so that rows are full")
    overlap: bool = option(True, "the companion chip works while the banks do; False is a control")
    row: int = option(1024, "numbers of a DRAM row; short rows are a control", unit="numbers")
    pin_rate: float = option(16.0, "rate of the pins between memory and companion chip", unit="Gb/s")
    gpu_launch: bool = option(True, "a GPU spends time on launching each layer; False is a control")
    double: bool = option(True, "the closed form in JAX is computed in float64; False is a control")
    fault: Fault = option(Fault.none, "swapped_banks puts weights into the neighbouring bank: a control")

    model: str = option("byte_lm.v1", "trained model that is computed in memory, by its name in the zoo")
    words: int = option(64, "bytes of held-out text that it reads")
    small_words: int = option(16, "tokens of the GPT-2-like model with random weights")
    designs: int = option(10_000, "machines of the closed-form sweep")
    compiled: bool = option(True, "PyTorch's sweep is compiled too (10 s) before it is timed beside JAX's")
    repeats: int = option(5, "timings of each, of which the median counts")

    def __post_init__(self) -> None:
        if not (self.tokens > 1 and min(self.stride, self.fit_stride, self.designs) > 0):
            raise ValueError("tokens must be at least 2, stride, fit_stride and designs at least 1")

    def machine(self, **changes: object) -> Machine:
        """The paper's machine with this row and pin rate, as large as with rows of 1024 numbers."""
        usual = Machine()
        return Machine(
            **{"row": self.row, "rows": usual.rows * usual.row // self.row, "pin_rate": self.pin_rate, **changes}  # type: ignore[arg-type]
        )

    def quiet_machine(self) -> Machine:
        """Without refresh."""
        return self.machine(timing=Timing(refresh_interval=0))

    def options(self, tokens: int | None = None) -> Options:
        return Options(
            self.tokens if tokens is None else tokens,
            self.packed,
            self.chunks is Chunks.inside,
            self.values is Values.rows,
            self.overlap,
        )


PRESETS = {
    "smoke": Config(stride=1023, fit_stride=128, words=16, small_words=16, designs=2000, repeats=3, compiled=False),
    "laptop": Config(),
    # All positions of all models, as the paper: about half an hour on a CPU.
    "paper": Config(stride=1, fit_stride=1, words=512),
}
