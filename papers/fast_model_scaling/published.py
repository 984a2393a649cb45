"""The published networks, as numbers; what is counted of them stands in the ledger alone."""

from __future__ import annotations

EFFICIENTNET_B0 = {
    "stem": 32, "depths": (1, 2, 2, 3, 3, 4, 1), "widths": (16, 24, 40, 80, 112, 192, 320), "expands": (1, 6, 6, 6, 6, 6, 6),
    "kernels": (3, 3, 5, 3, 5, 5, 3), "strides": (1, 2, 2, 2, 1, 2, 1), "head": 1280, "resolution": 224,
}  # fmt: skip
"""Tan and Le 2019 (arXiv 1905.11946), table 1; the resolution of an image in pixels."""

EFFICIENTNETS = {
    "EfficientNet-B0": (1.0, 1.0, 224), "EfficientNet-B1": (1.0, 1.1, 240), "EfficientNet-B2": (1.1, 1.2, 260),
    "EfficientNet-B3": (1.2, 1.4, 300), "EfficientNet-B4": (1.4, 1.8, 380), "EfficientNet-B5": (1.6, 2.2, 456),
}  # fmt: skip
"""Factors on width and depth, and resolution in pixels: the authors' code of EfficientNet (tensorflow/tpu)."""

REGNETS = {
    "RegNetX-200MF": (13, 24, 36.44, 2.49, 8), "RegNetX-400MF": (22, 24, 24.48, 2.54, 16),
    "RegNetX-600MF": (16, 48, 36.97, 2.24, 24), "RegNetX-800MF": (16, 56, 35.73, 2.28, 16),
    "RegNetX-1.6GF": (18, 80, 34.01, 2.25, 24), "RegNetX-3.2GF": (25, 88, 26.31, 2.25, 48),
    "RegNetX-4.0GF": (23, 96, 38.65, 2.43, 40), "RegNetX-6.4GF": (17, 184, 60.83, 2.07, 56),
    "RegNetX-8.0GF": (23, 80, 49.56, 2.88, 120), "RegNetX-12GF": (19, 168, 73.36, 2.37, 112),
    "RegNetX-16GF": (22, 216, 55.59, 2.1, 128), "RegNetX-32GF": (23, 320, 69.86, 2.0, 168),
    "RegNetY-200MF": (13, 24, 36.44, 2.49, 8), "RegNetY-400MF": (16, 48, 27.89, 2.09, 8),
    "RegNetY-600MF": (15, 48, 32.54, 2.32, 16), "RegNetY-800MF": (14, 56, 38.84, 2.4, 16),
    "RegNetY-1.6GF": (27, 48, 20.71, 2.65, 24), "RegNetY-3.2GF": (21, 80, 42.63, 2.66, 24),
    "RegNetY-4.0GF": (22, 96, 31.41, 2.24, 64), "RegNetY-6.4GF": (25, 112, 33.22, 2.27, 72),
    "RegNetY-8.0GF": (17, 192, 76.82, 2.19, 56), "RegNetY-12GF": (19, 168, 73.36, 2.37, 112),
    "RegNetY-16GF": (18, 200, 106.23, 2.48, 112), "RegNetY-32GF": (20, 232, 115.89, 2.53, 232),
}  # fmt: skip
"""Depth, w_0, w_a, w_m and group width: Radosavovic et al. 2020 (arXiv 2003.13678), figures 17 and 18; pycls' model zoo."""

REGNET_STEM, REGNET_SQUEEZE, REGNET_RESOLUTION = 32, 0.25, 224
"""Width of the stem; channels of the Y networks' gates over the inputs of their block; pixels."""

RESNET_50 = {
    "stem": 64, "stem_kernel": 7, "pool": True, "depths": (3, 4, 6, 3), "widths": (256, 512, 1024, 2048), "strides": (1, 2, 2, 2),
    "bottlenecks": (0.25,) * 4, "group_widths": (0,) * 4, "resolution": 224,
}  # fmt: skip
"""He et al. 2016 (arXiv 1512.03385), table 1."""
