"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"float64": 1e-9, "float32": 1e-5}
SINGLE = {"float32": 1e-5}


def _images(
    size: tuple[int, int, int], groups: int, each: int, out: int, kernel: tuple[int, int] = (3, 3), **options: Any
) -> Callable[[np.random.Generator], dict[str, Any]]:
    """``size``: images, rows, columns."""

    def make(rng: np.random.Generator) -> dict[str, Any]:
        weight = rng.standard_normal((*kernel, each, groups * out))
        return {"x": rng.standard_normal((*size, groups * each)), "weight": weight, **options}

    return make


def _large(size: int, channels: int, each: int, stride: int = 1, batch: int = 4) -> Case:
    name = f"{batch}x{size}x{size}x{channels} g{each} s{stride}"
    return Case(name, _images((batch, size, size), channels // each, each, each, stride=stride), SINGLE, large=True)


CASES = {
    "group_conv": [
        Case("narrow groups", _images((2, 5, 6), 5, 8, 8), SINGLE),
        Case("stride 2, other outputs", _images((2, 4, 5), 3, 4, 6, stride=2), EXACT),
        Case("one group, 1 x 1", _images((1, 4, 7), 1, 20, 9, (1, 1)), SINGLE),
        Case("wide groups", _images((1, 2, 5), 2, 40, 33, (1, 3)), SINGLE),
        Case("depthwise, long rows", _images((1, 1, 70), 3, 1, 1, (1, 3)), SINGLE),
        Case("stride 3 over a pixel", _images((2, 2, 1), 2, 3, 2, (3, 1), stride=3), SINGLE),
        Case("no images", _images((0, 4, 4), 2, 4, 4, stride=2), SINGLE),
        Case("half precision", _images((1, 2, 4), 2, 8, 8, (1, 3)), {"float16": 2e-3}, why="results are rounded to 11 bits"),
        _large(28, 128, 8),
        _large(28, 128, 16),
        _large(28, 128, 64),
        _large(28, 256, 32, stride=2),
    ]
}


def conv2d(*, x: Any, weight: Any, stride: int = 1) -> Any:
    """torch.nn.functional.conv2d on views: what lies in memory is what it calls channels last."""
    import torch

    padding = [(size - 1) // 2 for size in weight.shape[:2]]
    groups = x.shape[3] // weight.shape[2]
    return torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), weight.permute(3, 2, 0, 1), None, stride, padding, 1, groups
    ).permute(0, 2, 3, 1)


def conv2d_contiguous(*, x: Any, weight: Any, stride: int = 1) -> Any:
    """The same sizes with channels first. The numbers are taken as if they lay so: for the time alone, not for the result."""
    import torch

    (batch, height, width, channels), (rows, columns, each, outputs) = x.shape, weight.shape
    images, kernels = x.reshape(batch, channels, height, width), weight.reshape(outputs, each, rows, columns)
    padding = [(size - 1) // 2 for size in (rows, columns)]
    return torch.nn.functional.conv2d(images, kernels, None, stride, padding, 1, channels // each)


PEERS = {"group_conv": {"conv2d (channels last)": conv2d, "conv2d (channels first)": conv2d_contiguous}}
