"""One small language model, trained by every method from the same weights on the same batches (PyTorch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from common.architecture import Transformer
from common.data import text
from common.models.transformer_torch import TransformerLM
from common.runner import Run
from common.training import torch_loop, warmup_cosine
from papers.galore import baselines
from papers.galore.config import Config
from papers.galore.memory import make, projected
from papers.galore.optimizer_torch import GaLore

METHODS = ("full", "galore", "galore 8-bit", "full 8-bit", "lora", "relora", "low-rank")


@dataclass(frozen=True)
class Outcome:
    """Losses of the steps and the loss on held-out text, in nats for each byte; the optimizer, with its state."""

    losses: np.ndarray
    held_out: float
    optimizer: GaLore
    model: nn.Module
    seconds: float


def architecture(config: Config) -> Transformer:
    return Transformer(
        width=config.width, depth=config.depth, heads=config.heads, kv_heads=config.heads,
        head_dim=config.width // config.heads, hidden=config.hidden, context=config.seq_len, vocabulary=config.vocabulary,
    )  # fmt: skip


def build(method: str, model: nn.Module, config: Config, rank: int, gap: int, rate: float, scale: float) -> GaLore:
    """Change the layers of the model as the method wants, and make its optimizer; all are Adam in Hugging Face's form."""
    generator = torch.Generator().manual_seed(config.seed)
    if method in ("lora", "relora"):
        baselines.swap(model, lambda layer: baselines.Lora(layer, rank, config.lora_scale, generator))
    elif method == "low-rank":
        baselines.swap(model, lambda layer: baselines.LowRank(layer, rank, generator))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    projection = {"rank": rank, "gap": gap, "scale": scale, "method": config.decomposition.value}
    optimizer = make(method, parameters, projection, lr=rate, eps=1e-8 if "8-bit" in method else 1e-6)
    # Embedding and norms are trained alike by all, so that methods differ in the matrices alone.
    optimizer.param_groups[-1]["lr"] = config.rate_rest
    return optimizer


def train(method: str, config: Config, run: Run, gap: int | None = None) -> Outcome:
    """Pre-training on the King James text with cosine decay to a tenth after a warm-up of a tenth of the steps."""
    gap = config.gap if gap is None else gap
    model = TransformerLM(architecture(config), seed=config.seed)
    rate = {"full": config.rate_full, "full 8-bit": config.rate_full, "low-rank": config.rate_low_rank}.get(
        method, config.rate_galore if method.startswith("galore") else config.rate_lora
    )
    optimizer = build(method, model, config, config.rank, gap, rate, config.scale if config.mechanism else 0.0)
    bible = text.king_james()
    run.used("text", bible.source, bible.sha256)
    batch_at = text.batches(bible.train, config.batch, config.seq_len, config.seed)
    schedule = warmup_cosine(config.steps, max(config.steps // 10, 1), 0.1)
    losses, seconds = _segments(method, model, optimizer, batch_at, schedule, config, run, f"{method}-{gap}")
    held = torch_loop.evaluate(model, _held_out(bible, config))
    return Outcome(losses, held, optimizer, model, seconds)


def walked_rank(model: nn.Module, config: Config) -> float:
    """Mean numerical rank of the change of the projected matrices since their start; below a thousandth of the largest
    singular value counts as nothing."""
    start = dict(TransformerLM(architecture(config), seed=config.seed).named_parameters())
    ranks = []
    for name, parameter in model.named_parameters():
        if projected(name, tuple(parameter.shape)):
            values = torch.linalg.svdvals(parameter.detach().cpu() - start[name].detach())
            ranks.append((values > 1e-3 * values[0]).sum().item() if values[0] > 0 else 0)
    return float(np.mean(ranks))


def _segments(
    method: str, model: nn.Module, optimizer: torch.optim.Optimizer, batch_at: Callable[[int], Any],
    schedule: Callable[[int], float], config: Config, run: Run, name: str,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """All steps at once, or for ReLoRA one segment from each merging to the next, each with a short warm-up of its own."""
    length = max(config.steps // config.restarts, 1) if method == "relora" else config.steps
    losses, seconds = [], 0.0
    for first in range(0, config.steps, length):

        def factor(step: int, first: int = first) -> float:
            again = min(1.0, (step + 1) / max(length // 10, 1)) if first else 1.0
            return schedule(first + step) * again

        def shifted(step: int, first: int = first) -> Any:
            return batch_at(first + step)

        if first:
            baselines.merge_all(model, optimizer)
        history = torch_loop.train(
            model, torch_loop.next_token_loss, shifted, optimizer,
            min(length, config.steps - first), factor,
            checkpoint=run.checkpoint(f"{name}-{first}".replace(" ", "_")), every=100, track=run.track, label=f"training: {name}",
        )  # fmt: skip
        losses.append(history.losses)
        seconds += history.seconds
    return np.concatenate(losses), seconds


def _held_out(bible: text.Text, config: Config) -> list[np.ndarray]:
    """Windows spread over the held-out books, half-way between those on which the learning rates were chosen (the ends and
    whole steps of an even spacing)."""
    every = list(text.windows(bible.held_out, 1, config.seq_len))
    chosen = ((np.arange(config.held_out_windows) + 0.5) * (len(every) - 1) / config.held_out_windows).astype(int)
    whole = np.concatenate([every[i] for i in chosen])
    return [whole[i : i + 16] for i in range(0, len(whole), 16)]
