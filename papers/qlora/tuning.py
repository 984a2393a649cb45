"""The fine-tuning experiments: variants of the frozen weights, adapters on all layers or attention alone, and ranks."""

from __future__ import annotations

from typing import Any

from common.data.text import batches, python_source, windows
from common.ledger import Value
from common.runner import Run
from common.zoo import Trained
from papers.qlora import finetune
from papers.qlora.config import Book, Config, Layers
from papers.qlora.finetune import Variant
from papers.qlora.weights import ALL_LINEAR, ATTENTION


def variants(config: Config, trained: Trained) -> dict[str, Variant]:
    """By label: the five of the paper, attention alone at the same number of trained parameters, and other ranks."""
    target = ALL_LINEAR if config.layers is Layers.every else ATTENTION
    shapes = finetune.linear_shapes(trained)
    rank = config.rank if config.layers is Layers.every else finetune.same_budget(shapes, config.rank, ATTENTION)
    nf4 = "int4" if config.book is Book.linear else "nf4"
    return {
        "full": Variant(),
        "LoRA-16": Variant(rank=rank, target=target),
        "NF4": Variant(nf4, rank, target),
        "FP4": Variant("fp4", rank, target),
        "Int4": Variant("int4", rank, target),
        "attention alone": Variant(nf4, finetune.same_budget(shapes, config.rank, ATTENTION), ATTENTION),
        **{f"rank {r}": Variant(nf4, r, target) for r in config.ranks},
    }


def measure(config: Config, run: Run, trained: Trained) -> dict[str, Value]:
    text, framework = python_source(), config.framework.value
    run.used("Python source", text.source, text.sha256)
    batch_at = batches(text.train, config.batch, config.seq_len, config.seed)
    held = finetune.take(windows(text.held_out, 16, config.seq_len), max(1, config.held_out_windows // 16))
    before = finetune.held_out_loss(trained.torch(), "torch", held)
    chosen, curves, losses, trained_parameters = variants(config, trained), {}, {}, {}
    recover, sweep = ("full", "LoRA-16", "NF4"), ("NF4", "attention alone", *(f"rank {r}" for r in config.ranks))
    wanted = [
        n
        for n in chosen
        if run.only is None or (run.wants("recover") and n in recover) or (run.wants("all_layers") and n in sweep)
    ]
    for label in wanted:
        model = finetune.prepare(trained, chosen[label], framework, alpha=config.alpha, dropout=config.dropout, seed=config.seed)
        curves[label] = finetune.train(
            model, framework, batch_at, rate=config.full_rate if label == "full" else config.rate, steps=config.steps,
            checkpoint=run.checkpoint(f"tune-{label.replace(' ', '-')}"), track=run.track, label=f"fine-tuning, {label}",
        )  # fmt: skip
        losses[label] = finetune.held_out_loss(model, framework, held)
        trained_parameters[label] = count(model, framework)
    run.keep("curves", curves)
    run.keep("tuned_losses", {"before": before, **losses})
    run.keep("trained_parameters", trained_parameters)
    run.figure("curves", lambda: draw(curves))
    values: dict[str, Value] = {}
    if run.wants("recover"):
        values["recover"] = {
            "loss over LoRA-16": losses["NF4"] / losses["LoRA-16"],
            "share of the gain of full fine-tuning": (before - losses["NF4"]) / (before - losses["full"]),
        }
    if run.wants("all_layers"):
        gap = losses["attention alone"] - losses["NF4"]
        ranks = [losses["NF4"], *(losses[f"rank {r}"] for r in config.ranks)]
        values["all_layers"] = {
            "loss of attention alone less that of all layers": gap,
            "spread over ranks by that gap": min((max(ranks) - min(ranks)) / gap, 1e6) if gap > 0 else 1e6,
        }
    return values


def count(model: Any, framework: str) -> int:
    """Trained parameters."""
    if framework == "torch":
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
    import jax
    from flax import nnx

    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def draw(curves: dict[str, list[float]]) -> Any:
    import numpy as np

    from common.figures import lines

    window = max(1, len(next(iter(curves.values()))) // 20)
    smooth = {name: np.convolve(losses, np.ones(window) / window, "valid") for name, losses in curves.items()}
    series = {name: (range(window, window + len(c)), c) for name, c in smooth.items()}
    labels = {"x": "step", "y": "loss [nats per byte]", "title": "From the King James text to Python source"}
    figure = lines(series, **labels)
    for line in figure.axes[0].lines:
        line.set_marker("")
    return figure
