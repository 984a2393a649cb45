"""The language model in 4 bits: rounded by GPTQ and to the nearest, packed, and run from the packed words."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from common import zoo
from common.data.text import batches, king_james, windows
from common.ledger import Value
from common.runner import Run
from papers.marlin.config import Config, Rounding

BATCH = 16


def language_model(config: Config, run: Run) -> dict[str, Value]:
    """Perplexity above that of the float32 model, by rounding, and each layer's output error, GPTQ over nearest."""
    import torch

    from common.training import torch_loop
    from papers.marlin import model_torch

    trained, text = zoo.load(config.language_model), king_james()
    run.used(config.language_model, trained.source, trained.sha256)
    run.used("King James text", text.source, text.sha256)
    batch_at = batches(text.train, BATCH, config.context, config.seed)
    steps = range(-(-config.calibration // BATCH))
    calibration = [torch.from_numpy(batch_at(step)[:, :-1]) for step in steps]
    dense = trained.torch()
    hessians = model_torch.hessians(dense, run.track(calibration, "summing Hessians"))
    chosen = hessians if config.rounding is Rounding.gptq else None
    held = list(itertools.islice(windows(text.held_out, BATCH, config.context), -(-config.held_out // BATCH)))
    bits, layers = {"float32": torch_loop.evaluate(dense, held) / np.log(2)}, {}
    for name, found in (("GPTQ", chosen), ("nearest", None)):
        model = trained.torch()
        layers[name] = model_torch.quantize(model, found)
        bits[name] = torch_loop.evaluate(model, held) / np.log(2)
    run.keep("bits_per_byte", bits)
    run.figure("perplexity", lambda: _bars(bits))
    rise = {name: 100 * (2 ** (bits[name] - bits["float32"]) - 1) for name in ("GPTQ", "nearest")}
    run.keep("rise", rise)
    ratio = [
        _error(each, layers["GPTQ"][name], hessians[name]) / _error(each, layers["nearest"][name], hessians[name])
        for name, each in model_torch.linear(dense).items()
    ]
    run.keep("layer_errors", ratio)
    stored = sum(layer.nbytes for layer in layers["GPTQ"].values())
    run.keep(
        "stored", {"bytes": stored, "float16 bytes": sum(2 * each.weight.numel() for each in model_torch.linear(dense).values())}
    )
    above = {"GPTQ": rise["GPTQ"], "nearest above GPTQ": rise["nearest"] - rise["GPTQ"]}
    return {"gptq_perplexity": above, "gptq_layers": float(max(ratio))}


def _error(layer: Any, packed: Any, hessian: Any) -> float:
    """tr (W - Q) H (W - Q)^T / 2: the squared error of the layer's output, a mean over the calibration."""
    import torch

    from papers.marlin.model_torch import MarlinLinear

    difference = (layer.weight.detach() - MarlinLinear(packed).weight()).double()
    k = difference.shape[1]
    return float(torch.einsum("nk,kl,nl->", difference, hessian[:k, :k], difference)) / 2


def _bars(bits: dict[str, float]) -> Any:
    from common.figures import COLOURS, style

    with style() as plt:
        figure, axes = plt.subplots(figsize=(4.6, 3.4))
        values = [2**each for each in bits.values()]
        axes.bar(list(bits), values, color=COLOURS[:3], width=0.6)
        axes.set(
            ylim=(0.98 * min(values), 1.01 * max(values)),
            ylabel="perplexity of a byte",
            title="Held-out books, 4 bits, groups of 128",
        )
        return figure
