"""Figures of the paper that go into models or are combined: table 1 and the settings around it. Source: recalled, checked by the
agreement of parameters and aggregate rates in all rows."""

from __future__ import annotations

from typing import NamedTuple

from papers.megatron_lm.layout import Layout
from papers.megatron_lm.shape import Shape

VOCABULARY = 51_200
CONTEXT = 2048
PEAK = 312e12
"""FLOP/s of an A100 in half precision (section 5)."""


class Row(NamedTuple):
    """A row of table 1; ``rate`` is TFLOP/s on each GPU."""

    heads: int
    width: int
    depth: int
    tensor: int
    pipeline: int
    gpus: int
    batch: int
    rate: float

    @property
    def shape(self) -> Shape:
        return Shape(vocabulary=VOCABULARY, width=self.width, depth=self.depth, heads=self.heads, context=CONTEXT)

    @property
    def layout(self) -> Layout:
        return Layout(tensor=self.tensor, pipeline=self.pipeline, data=self.gpus // (self.tensor * self.pipeline))


TABLE = {
    "1.7B": Row(24, 2304, 24, 1, 1, 32, 512, 137),
    "3.6B": Row(32, 3072, 30, 2, 1, 64, 512, 138),
    "7.5B": Row(32, 4096, 36, 4, 1, 128, 512, 142),
    "18.4B": Row(48, 6144, 40, 8, 1, 256, 1024, 135),
    "39.1B": Row(64, 8192, 48, 8, 2, 512, 1536, 138),
    "76.1B": Row(80, 10240, 60, 8, 4, 1024, 1792, 140),
    "145.6B": Row(96, 12288, 80, 8, 8, 1536, 2304, 148),
    "310.1B": Row(128, 16384, 96, 8, 16, 1920, 2160, 155),
    "529.6B": Row(128, 20480, 105, 8, 35, 2520, 2520, 163),
    "1008.0B": Row(160, 25600, 128, 8, 64, 3072, 3072, 163),
}
AGGREGATE = 502e15
"""FLOP/s of the last row on all GPUs (abstract)."""

DAYS = {"175B": (300e9, 175e9, 1024, 140e12), "1T": (450e9, 1008e9, 3072, 163e12)}
"""Tokens, parameters, GPUs and FLOP/s on each (section 5.1)."""

SEARCHED = Shape(vocabulary=VOCABULARY, width=20480, depth=32, heads=128, context=CONTEXT)
"""The model of 162.2 B parameters whose combinations of t and p are compared on 64 GPUs (section 5.4.1)."""


class Doubled(NamedTuple):
    """A model of the comparison with ZeRO-3 when its GPUs have been doubled (section 5.2, table 2): GPUs and microbatch of
    ZeRO-3, GPUs and layout of PTD-P."""

    shape: Shape
    batch: int
    zero_gpus: int
    zero_microbatch: int
    gpus: int
    layout: Layout


DOUBLED = {
    "174.6B": Doubled(
        Shape(vocabulary=VOCABULARY, width=12288, depth=96, heads=96, context=CONTEXT), 1536, 768, 2, 768,
        Layout(tensor=8, pipeline=12, data=8),
    ),
    "529.6B": Doubled(TABLE["529.6B"].shape, 2240, 1120, 2, 1120, Layout(tensor=8, pipeline=35, data=4)),
}  # fmt: skip

SHARE = 0.4735
"""Part of the peak that matrix products reach: fitted, so that the model of time gives the first row of the table its rate."""
