"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from common.config import option


class Order(Enum):
    """The order in which packed bytes are written."""

    typemap = "type map"  # as MPI prescribes
    sorted = "sorted"  # as the canonical form has its loops: the authors' way, and a control


class Method(Enum):
    """How a message goes."""

    auto = "auto"  # as the model says
    library = "library"
    oneshot = "oneshot"
    staged = "staged"


class Interpolation(Enum):
    linear = "linear"
    lower = "lower"  # the next smaller entry of the table: a control


@dataclass(frozen=True)
class Config:
    seed: int = option(2021, "seed of the random datatypes")
    layer: bool = option(True, "the layer stands between program and library; False is a control")
    order: Order = option(Order.typemap, "order of packed bytes; sorted is a control")
    canonicalise: bool = option(True, "trees are brought to their canonical form; False is a control")
    method: Method = option(Method.auto, "how messages go in the comparison of methods; all but auto are controls")
    interpolation: Interpolation = option(Interpolation.linear, "how the model reads its tables; lower is a control")

    types: int = option(2000, "random nested datatypes that are packed by library and layer")
    copies: list[int] = field(
        default_factory=lambda: [2**10, 2**16, 2**20], metadata={"help": "sizes whose copies are counted", "unit": "bytes"}
    )

    table_bytes: int = option(2**22, "largest message in the tables of the model", unit="bytes")
    table_samples: int = option(16, "samples of one time, which the test for independence looks at")
    table_rounds: int = option(3, "rounds of samples until they pass the test, at most")
    table_seconds: float = option(0.2, "no further round after this time", unit="s")
    memory: int = option(2**29, "memory that one object may lie in; larger ones are left out", unit="bytes")

    sizes: list[int] = field(
        default_factory=lambda: [2**10, 2**20, 2**22], metadata={"help": "objects of the pack sweep", "unit": "bytes"}
    )
    blocks: list[int] = field(
        default_factory=lambda: [2**k for k in range(10)],
        metadata={"help": "their contiguous blocks, 512 bytes apart", "unit": "bytes"},
    )
    repeats: int = option(7, "timed calls of each variant, of which the median counts")
    messages: list[int] = field(
        default_factory=lambda: [3 * 2**k for k in (10, 13, 16, 19)],
        metadata={"help": "messages in the comparison of methods", "unit": "bytes"},
    )
    pieces: list[int] = field(
        default_factory=lambda: [2, 6, 24, 96, 384], metadata={"help": "their contiguous blocks", "unit": "bytes"}
    )

    halo_ranks: int = option(4, "ranks of the halo exchange")
    halo_size: int = option(64, "points of a rank along each axis")
    halo_radius: int = option(3, "radius of the stencil")
    halo_quantities: int = option(4, "quantities of a point")
    halo_steps: int = option(30, "timed steps of the exchange")
    halo_turns: int = option(3, "starts of the program with and without the layer, in turns")

    gpu: bool = option(False, "time the packing kernel on a GPU")

    def __post_init__(self) -> None:
        if self.table_samples < 7:
            raise ValueError(f"table_samples is {self.table_samples}; wanted at least 7, with fewer any order is rare")
        if self.table_bytes < 2**8 or self.table_bytes & (self.table_bytes - 1):
            raise ValueError(f"table_bytes is {self.table_bytes}; wanted a power of two of at least 256")
        if bad := [(size, block) for size in self.messages for block in self.pieces if size % block]:
            raise ValueError(f"a message of {bad[0][0]} bytes has no whole number of blocks of {bad[0][1]}; choose multiples")
        if self.halo_ranks < 1 or self.halo_size < self.halo_radius:
            raise ValueError(
                f"halo_size {self.halo_size} on {self.halo_ranks} ranks; wanted a rank at least as wide as the radius {self.halo_radius}"
            )


PRESETS = {
    "smoke": Config(
        types=200, copies=[2**10, 2**16], table_bytes=2**16, table_samples=8, table_rounds=1, memory=2**26, sizes=[2**10, 2**20],
        blocks=[8, 64, 512], repeats=3, messages=[3 * 2**9, 3 * 2**12], pieces=[6, 96], halo_ranks=2,
        halo_size=24, halo_steps=8, halo_turns=1,
    ),
    "laptop": Config(),
    "paper": Config(halo_ranks=3072, halo_size=256, halo_radius=3, halo_quantities=8, gpu=True),
}  # fmt: skip
