"""Architectures and figures that others have published."""

from __future__ import annotations

ARCHITECTURES = {
    "A": "s | 3_3 3_1 s s | 5_6 3_3 5_1 3_3 | 5_6 5_3 5_1g 5_6 | 3_6 5_1g 5_3 3_1g | 5_6 5_6 5_3 5_6 | 5_6",
    "B": "3_1 | 3_6 5_1 3_1 3_1 | 5_6 5_3 3_6 5_6 | 5_6 5_6 s 5_3 | 5_6 3_1 5_1 5_3 | 5_6 5_1 5_6 5_6 | 3_6",
    "B file": "3_1 | 3_6 5_1 3_1 3_1 | 5_6 5_3 3_6 5_6 | 5_6 5_1 s 5_3 | 5_6 3_1 5_1 5_3 | 5_6 5_1 5_6 5_6 | 3_6",
    "C": "3_1 | 3_6 s 3_1 3_1 | 5_6 5_3 5_6 3_6 | 5_6 5_3 5_6 5_6 | 5_6 5_6 5_6 5_3 | 5_6 5_6 5_6 5_6 | 3_6",
    "Samsung S8": "3_1 | 3_3 3_1 s s | 5_6 3_3 3_3 3_6 | 5_6 5_3 5_3 5_3 | 3_6 5_3 5_3 5_3 | 5_6 5_6 5_3 5_6 | 5_6",
    "iPhone X": "s | 3_6 3_1 3_1 3_1 | 3_6 3_6 3_6 3_6 | 3_6 3_6 3_3 3_6 | 3_6 3_3 3_3 3_3 | 5_6 5_6 5_6 5_3 | 5_6",
    "96-0.35-1": "3_1 | 3_6 3_6 s s | 5_6 5_6 s s | 5_6 s s s | 3_6 s s s | 5_6 5_6 s s | 5_6",
}
"""Source: facebookresearch/mobile-vision (model zoo of FBNet) and facebookresearch/maskrcnn-benchmark (``fbnet_modeldef``),
where "B file" has one block that the zoo's B has not."""

LAST = {"A": 1504, "B": 1984, "B file": 1984, "C": 1984, "Samsung S8": 1504, "iPhone X": 1504, "96-0.35-1": 1416}
"""Outputs of the last convolution; same source."""

STAGES = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
"""Channels, layers, stride of the first. Source: the paper, Table 1; the last two widths as the code has them."""

NARROW = ((8, 1, 1), (16, 4, 2), (16, 4, 2), (24, 4, 2), (40, 4, 1), (72, 4, 2), (128, 1, 1))
"""Stages of the net for 96 x 96 images at width 0.35; the code."""

STEM, NARROW_STEM = 16, 8
"""Outputs of the first convolution."""

MILLISECONDS = {
    "FBNet-B on S8": 23.1,
    "MobileNetV2-1.3 on S8": 33.8,
    "FBNet-96-0.35-1 on S8": 2.9,
    "iPhone X net on iPhone X": 19.84,
    "S8 net on iPhone X": 27.53,
}
"""Source: the paper, Tables 2, 3 and 4; those of the iPhone X from memory."""

MACS = {"FBNet-B": 295, "MobileNetV2-1.3": 509}
PARAMETERS = {"FBNet-B": 4.5, "MobileNetV2-1.3": 5.3}
"""Millions, as the paper's Table 2 prints them."""

GPUS, HOURS, MNASNET_HOURS = 8, 27, 91_000
"""Of the search; GPU-hours of the search that the abstract compares with. The paper, section 4.1 and Table 2."""

ALPHA, BETA = 0.2, 0.6
TAU, TAU_DECAY, EPOCHS, WARM_EPOCHS = 5.0, 0.045, 90, 10
"""Of the loss and of the annealing: tau = TAU exp(-TAU_DECAY epoch); section 4.1."""
