"""The paper's prices, request sizes, example and figures, with their sources; what is fitted sees ``CORNERS`` alone."""

from __future__ import annotations

import numpy as np

from common.architecture import Transformer

PRICES = {"L4": 0.70, "A10G": 1.01, "A100": 3.67, "H100": 7.516}
"""Dollars an hour. Paper, table of GPUs; the first three stand in the authors' example and figures too."""

DEVICES = {"L4": "l4", "A10G": "a10g", "A100": "a100_80_pcie", "H100": "h100_sxm"}
"""The A100 of that price has PCIe (recalled; check); the paper does not say which H100."""

A10G_PEAKS = (70e12, 125e12)
"""FLOP/s in FP16: the A10G of one cloud, or the A10 of the data sheet; which of them counts is left to the fit."""

LLAMA2_7B = Transformer(
    width=4096, depth=32, heads=32, kv_heads=32, head_dim=128, hidden=11008, context=4096, vocabulary=32000, tied=False
)

INPUT_EDGES = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000)
OUTPUT_EDGES = (25, 100, 250, 500, 1000, 2000)
"""Upper edges of the sizes of requests, in tokens. Paper, section on the workload (recalled; check)."""

BATCH = 256
"""Sequences that the engine runs at once, vLLM 0.2.7's default."""
MEMORY_SHARE = 0.9
"""Of the device memory, that the engine takes, vLLM 0.2.7's default."""

SIZES = (25, 100, 250, 500, 1000, 2000)
"""Tokens, both ways, of the authors' picture of A10G against A100 (docs/images/a100-v-a10g-2.png), Llama2-7B."""

CORNERS = {(25, 25): 0.72, (2000, 25): 0.11, (25, 2000): -0.08, (2000, 2000): -0.38}
"""{(input, output): gain}: tokens a dollar of the A10G over the A100, less one; where the A100 leads, the gain of the A100
over the A10G with a minus. The only cells that the constants of the profile are fitted to."""

PICTURE = np.array(
    [  # by output; columns by input
        [0.72, 0.52, 0.20, 0.17, 0.13, 0.11],
        [0.52, 0.25, 0.15, 0.01, -0.01, -0.04],
        [0.28, 0.11, 0.02, 0.01, -0.08, -0.13],
        [0.12, 0.02, 0.01, -0.04, -0.17, -0.21],
        [-0.06, -0.10, -0.11, -0.11, -0.18, -0.20],
        [-0.08, -0.10, -0.13, -0.17, -0.18, -0.38],
    ]
).T  # fmt: skip
"""All cells of that picture, (input, output), read off its labels and colours. Held against the profile after the fit."""

EXAMPLE_PRICES = (1.01, 3.67)
EXAMPLE_RATES = np.array([[[2.0, 1.0], [5.0, 2.0]], [[20.0, 20.0], [40.0, 20.0]]])
EXAMPLE_SHARES = np.array([[0.2, 0.1], [0.5, 0.2]])
EXAMPLE_RATE = 30.0
"""The authors' melange/config/example.json: an A10G and an A100, two sizes each way, requests a second."""

ARENA_FLEETS = {
    1: ({"A10G": 1, "L4": 1}, {"H100": 1, "A100": 1, "A10G": 2, "L4": 3}),
    2: ({"A10G": 1, "L4": 2}, {"H100": 1, "A100": 1, "A10G": 3, "L4": 5}),
    4: ({"A100": 1, "L4": 1}, {"H100": 1, "A100": 2, "A10G": 6, "L4": 9}),
}
"""{rate: (the mix, GPUs of each type alone)}: the small fleets whose prices explain the bars of docs/images/Arena_120-1.png
(short requests, 120 ms); the smallest that do, by enumeration in tests/papers/test_melange.py."""
