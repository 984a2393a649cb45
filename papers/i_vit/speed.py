"""Timings on this machine: products, Shiftmax and a whole forward pass in integers beside PyTorch's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common import meter
from common.models.vision_torch import ViT
from common.models.weights import initial_weights
from kernels.gemm_int8 import dyadic, matmul_int8, matmul_int8_dyadic
from papers.i_vit import cost, engine, network
from papers.i_vit.convert import convert_vit
from papers.i_vit.kernel import shiftmax
from papers.i_vit.simulation import Options
from papers.i_vit.store import Exported

SHAPE = (197, 384, 1536)
"""Tokens, inputs, outputs: the first layer of DeiT-S's feed-forward network."""


def products(repeats: int) -> dict[str, float]:
    """Seconds of each product at :data:`SHAPE`."""
    rows, inner, outer = SHAPE
    rng = np.random.default_rng(0)
    x, w = (torch.from_numpy(rng.integers(-127, 128, shape, dtype=np.int8)) for shape in ((rows, inner), (outer, inner)))
    bias = torch.from_numpy(rng.integers(-1000, 1000, outer, dtype=np.int32))
    m, e = (torch.from_numpy(each) for each in dyadic(rng.uniform(1e-4, 2e-4, outer)))
    real, weight = x.float(), w.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.ao.nn.quantized.Linear(inner, outer)
        coded = torch.quantize_per_tensor(real, 0.05, 128, torch.quint8)

        def quantised() -> Any:
            return layer(coded)

        quantised()
    return meter.median_seconds(
        {
            "int8 to int32": lambda: matmul_int8(x, w),
            "int8 to int8, dyadic": lambda: matmul_int8_dyadic(x, w, bias, m, e),
            "torch._int_mm": lambda: torch._int_mm(x, w.t()),
            "torch quantised linear": quantised,
            "float32 linear": lambda: F.linear(real, weight),
        },
        repeats=repeats,
        warmup=3,
        least=0.03,
    )


def softmaxes(repeats: int) -> dict[str, float]:
    """Seconds for the attention weights of one layer of DeiT-S."""
    codes = torch.from_numpy(np.random.default_rng(0).integers(-128, 128, (6, 197, 197), dtype=np.int8))
    real = codes.float()
    functions = {
        "16 bits": lambda: shiftmax(codes, unit=16, bits=16),
        "8 bits": lambda: shiftmax(codes, unit=16, bits=8),
        "torch.softmax": lambda: torch.softmax(real, -1),
    }
    return meter.median_seconds(functions, repeats=repeats, warmup=3, least=0.03)


def forwards(name: str, repeats: int) -> dict[str, float]:
    """Seconds of a forward pass of a DeiT with random weights, one image."""
    architecture = cost.deit(name)
    exported = random_network(name)
    model = ViT(architecture).eval()
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3))
    real, codes, arrays = torch.from_numpy(image).float(), torch.from_numpy(exported.quantise(image)), exported.torch()

    def whole() -> Any:
        return engine.run(arrays, exported.notes, codes)

    def single() -> Any:
        with torch.no_grad():
            return model(real)

    return meter.median_seconds({"integers": whole, "float32": single}, repeats=repeats)


def random_network(name: str) -> Exported:
    """A DeiT of random weights whose quantisers have all the range (-4, 4)."""
    architecture = cost.deit(name)
    weights = {each: array * (5 if array.ndim == 2 else 1) for each, array in initial_weights(architecture, 0).items()}
    ranges = np.tile([-4.0, 4.0], (len(network.vit_acts(architecture)), 1))
    return convert_vit(weights, ranges, architecture, Options(default=(18, False)))
