"""How much each grid of sixteen values loses: on normal numbers, on trained weights, and in a language model's loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.data.checkpoints import minilm
from common.ledger import Value
from common.runner import Run
from common.zoo import Trained
from kernels.block_quant import code_book, dequantize_blockwise, quantize_blockwise
from papers.qlora import grids
from papers.qlora.config import Book, Config, Fault, Weights

LABELS = {"nf4": "NF4", "int4": "Int4", "fp4": "FP4", "fp4_e3m0": "FP4 E3M0"}


def books(config: Config) -> dict[str, np.ndarray]:
    """The grids by label; a control puts another grid where NF4 is."""
    nf4 = code_book("int4" if config.book is Book.linear else "nf4")
    return {"NF4": nf4} | {label: grids.GRIDS.get(name, None) if name in grids.GRIDS else code_book(name)
                           for name, label in LABELS.items() if name != "nf4"}  # fmt: skip


def errors(config: Config, run: Run, trained: Trained) -> dict[str, Value]:
    """Mean squared errors of the grids, and how evenly their codes are used."""
    import torch

    generator = torch.Generator().manual_seed(config.seed)
    normal = torch.randn(config.blocks * 64, generator=generator)
    if config.weights is Weights.minilm:
        real = minilm()
        run.used("all-MiniLM-L6-v2", real.source, real.sha256)
        matrices = [w for name, w in real.matrices.items() if ".layer." in name]
    else:
        matrices = [w for name, w in trained.weights.items() if name.startswith("blocks.") and w.ndim == 2]
    # Every matrix counts alike, whatever its scale.
    weights = torch.cat([torch.from_numpy((w / w.std()).reshape(-1)) for w in matrices])
    found: dict[str, dict[str, float]] = {"normal numbers": {}, "trained weights": {}}
    entropy, kept = {}, {}
    for label, book in books(config).items():
        for name, x in (("normal numbers", normal), ("trained weights", weights)):
            indices, absmax = quantize_blockwise(x, book)
            error = dequantize_blockwise(indices, absmax, book) - x
            found[name][label] = float(error.square().mean())
            if name == "normal numbers":
                share = np.bincount(indices.numpy(), minlength=book.size) / indices.numel()
                entropy[label] = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
                kept[label] = {"values": book, "share": share, "errors": np.histogram(error.numpy(), 60, (-0.6, 0.6))[0]}
    run.keep("grids", kept)
    run.keep("errors", found)
    run.keep("entropy", entropy)
    run.figure("grids", lambda: draw_grids(books(config), kept))
    best = {name: min(by_grid, key=lambda label: by_grid[label]) for name, by_grid in found.items()}
    normal_errors = found["normal numbers"]
    return {
        "mse": {label: normal_errors[label] for label in ("NF4", "FP4")},
        "mse_order": {
            "NF4 below Int4 below FP4": normal_errors["NF4"] < normal_errors["Int4"] < normal_errors["FP4"],
            "NF4 least on trained weights": best["trained weights"] == "NF4" and found["trained weights"]["NF4"] < found["trained weights"]["Int4"],
        },
        "equal_mass": entropy["NF4"],
        "constants": float(np.abs(grids.normal_float() - np.resize(books(config)["NF4"], 16)).max()),
    }  # fmt: skip


def untuned_losses(config: Config, run: Run, models: list[Trained], batches: list[np.ndarray]) -> dict[str, Value]:
    """Mean loss of trained models whose linear layers are quantised with each grid, and no training after."""
    from papers.qlora import layers_torch as layers
    from papers.qlora.finetune import held_out_loss

    kinds = {
        "16 bit": ("", False), "Int4": ("int4", True), "FP4": ("fp4", True), "FP4 E3M0": ("fp4_e3m0", True),
        "NF4": ("nf4", False), "NF4+DQ": ("nf4", True),
    }  # fmt: skip
    by_model: dict[str, dict[str, float]] = {trained.name: {} for trained in models}
    for label, (kind, double) in run.track(kinds.items(), "losses without tuning"):
        for trained in models:
            model = trained.torch()
            if kind:
                layers.quantize(model, kind, double=double)
            if config.fault is Fault.drop_offset and label == "NF4+DQ":
                drop_offset(model)
            by_model[trained.name][label] = held_out_loss(model, "torch", batches)
    run.keep("untuned_losses", by_model)
    losses = {label: float(np.mean([found[label] for found in by_model.values()])) for label in kinds}
    return {
        "untuned_order": {f"NF4+DQ below {label}": losses["NF4+DQ"] < losses[label] for label in ("Int4", "FP4")},
        "untuned_double": abs(losses["NF4+DQ"] / losses["NF4"] - 1),
    }


def drop_offset(model: Any) -> None:
    """A fault: the mean of the scales is forgotten."""
    from papers.qlora.layers_torch import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.offset.zero_()


def draw_grids(books: dict[str, np.ndarray], kept: dict[str, Any]) -> Any:
    """The values of each grid under the normal density, and what share of normal numbers falls to each."""
    from scipy.stats import norm

    from common.figures import COLOURS, style

    with style() as plt:
        figure, axes = plt.subplots(2, 1, sharex=True, figsize=(6.4, 4.6))
        x = np.linspace(-1, 1, 200)
        # A block's largest of 64 is at about 2.4 deviations.
        axes[0].fill_between(x, norm.pdf(x * 2.4) / norm.pdf(0), color="#dddddd", label="density of normal numbers")
        for row, (label, colour) in enumerate(zip(books, COLOURS, strict=False)):
            axes[0].plot(books[label], np.full(books[label].size, 0.1 + 0.2 * row), "|", ms=12, mew=2, color=colour, label=label)
            axes[1].plot(books[label], kept[label]["share"][: books[label].size], "o-", ms=3, color=colour, label=label)
        axes[1].axhline(1 / 16, color="#777777", ls="--", lw=1, label="equal shares")
        axes[0].set(title="Sixteen values for a block of 64", yticks=[], ylabel="")
        axes[1].set(xlabel="value over the block's largest", ylabel="share of numbers")
        axes[0].legend(loc="upper right")
        axes[1].legend(loc="upper right")
        return figure
