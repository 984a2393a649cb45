"""Inputs for tests and benchmarks, and what a user would take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from common.ops import Case

EXACT = {"float64": 1e-9, "float32": 1e-5}
SINGLE = {"float32": 1e-5}


def _drawn(places: tuple[int, ...], weight: tuple[int, int, int]) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        return {"x": rng.standard_normal((*places, weight[0] * weight[1])), "weight": rng.standard_normal(weight)}

    return make


def _large(size: int, channels: int, batch: int = 1) -> Case:
    """The layers with two groups of the paper's space, expansion 1."""
    name = f"{batch}x{size}x{size}x{channels}"
    return Case(name, _drawn((batch, size, size), (2, channels // 2, channels // 2)), SINGLE, large=True)


CASES = {
    "group_pointwise_shuffle": [
        Case("two groups", _drawn((2, 3, 5), (2, 12, 20)), EXACT),
        Case("ragged over tiles", _drawn((33,), (3, 17, 11)), SINGLE),
        Case("one group is a product", _drawn((4, 2), (1, 9, 33)), EXACT),
        Case("one channel each", _drawn((7,), (4, 1, 1)), SINGLE),
        Case("one place without axes", _drawn((), (2, 3, 2)), SINGLE),
        Case("no places", _drawn((0, 4), (2, 3, 2)), SINGLE),
        Case("many inputs", _drawn((5,), (2, 70, 3)), SINGLE),
        Case("half precision", _drawn((6, 4), (2, 8, 10)), {"float16": 2e-3}, why="results are rounded to 11 bits"),
        _large(112, 16),
        _large(56, 24),
        _large(28, 32),
        _large(14, 112),
        _large(7, 184, batch=8),
    ]
}


def convolution(*, x: Any, weight: Any) -> Any:
    """torch.nn.functional.conv2d with groups, then the shuffle by view and transpose, on channels-last memory."""
    return shuffled(x.permute(0, 3, 1, 2), weight).permute(0, 2, 3, 1)


def convolution_contiguous(*, x: Any, weight: Any) -> Any:
    """The same with channels first. The numbers are taken as if they lay so: for the time alone, not for the result."""
    batch, height, width, channels = x.shape
    return shuffled(x.reshape(batch, channels, height, width), weight)


def shuffled(x: Any, weight: Any) -> Any:
    """What a user writes, on (batch, channel, height, width)."""
    import torch

    groups, inputs, each = weight.shape
    kernel = weight.transpose(1, 2).reshape(groups * each, inputs, 1, 1)
    y = torch.nn.functional.conv2d(x, kernel, groups=groups)
    batch, outputs, height, width = y.shape
    return y.view(batch, groups, each, height, width).transpose(1, 2).reshape(batch, outputs, height, width)


PEERS = {
    "group_pointwise_shuffle": {
        "conv2d, view, transpose (channels last)": convolution,
        "conv2d, view, transpose (channels first)": convolution_contiguous,
    }
}
