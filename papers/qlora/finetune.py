"""Fine-tuning a trained model on another text in the paper's variants; the same in both frameworks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from common.zoo import Trained
from papers.qlora.weights import ALL_LINEAR

CLIP = 0.3
BETAS = (0.9, 0.999)
"""QLoRA, appendix B.2: gradient norm clipped at 0.3, AdamW with beta2 = 0.999 and no weight decay."""


class Variant(NamedTuple):
    """How a model is fine-tuned.

    Attributes:
        kind: the 4-bit code of the frozen weights, or "" for weights as they are.
        rank: of the adapters; 0 trains all weights instead.
        target: the layers with adapters.
    """

    kind: str = ""
    rank: int = 0
    target: str = ALL_LINEAR
    double: bool = True


def prepare(trained: Trained, variant: Variant, framework: str, *, alpha: float, dropout: float, seed: int) -> Any:
    """The model of a variant in a framework, ready to be trained."""
    if framework == "torch":
        from papers.qlora import layers_torch as layers
    else:
        from papers.qlora import layers_jax as layers  # type: ignore[no-redef]
    model = getattr(trained, framework)()
    if variant.kind:
        layers.quantize(model, variant.kind, double=variant.double)
    if variant.rank:
        layers.add_adapters(model, variant.rank, alpha=alpha, dropout=dropout, target=variant.target, seed=seed)
    return model


def train(
    model: Any,
    framework: str,
    batch_at: Callable[[int], np.ndarray],
    *,
    rate: float,
    steps: int,
    checkpoint: Any,
    track: Any,
    label: str,
) -> list[float]:
    """AdamW with the paper's settings at a constant rate after 3 % of warm-up; the loss of each step."""
    warmup = max(1, round(0.03 * steps))

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / warmup)

    options = {"checkpoint": checkpoint, "every": 50, "track": track, "label": label}
    if framework == "torch":
        from common.training import torch_loop

        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = _clipped()(parameters, lr=rate, betas=BETAS, weight_decay=0.0, fused=True)
        history = torch_loop.train(model, torch_loop.next_token_loss, batch_at, optimizer, steps, schedule, **options)
    else:
        import optax

        from common.training import jax_loop

        rule = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(rate, *BETAS, weight_decay=0.0))
        history = jax_loop.train(model, jax_loop.next_token_loss, batch_at, rule, steps, schedule, **options)
    return history.losses.tolist()


def held_out_loss(model: Any, framework: str, batches: Iterable[np.ndarray]) -> float:
    """Nats for each byte."""
    if framework == "torch":
        from common.training import torch_loop as loop
    else:
        from common.training import jax_loop as loop  # type: ignore[no-redef]
    return loop.evaluate(model, batches)


def same_budget(shapes: dict[str, tuple[int, int]], rank: int, target: str) -> int:
    """The rank at which adapters on ``target`` alone have as many parameters as rank ``rank`` on every linear layer.

    Args:
        shapes: (n, k) of every linear layer, by name.
    """
    from papers.qlora.weights import matching

    every = sum(n + k for n, k in (shapes[name] for name in matching(ALL_LINEAR, shapes)))
    some = sum(n + k for n, k in (shapes[name] for name in matching(target, shapes)))
    return round(rank * every / some)


def linear_shapes(trained: Trained) -> dict[str, tuple[int, int]]:
    """(n, k) of every linear layer of a trained model, without the embedding and the head."""
    return {
        name.removesuffix(".weight"): value.shape
        for name, value in trained.weights.items()
        if name.startswith("blocks.") and value.ndim == 2
    }


def take(batches: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    return list(itertools.islice(batches, count))


def _clipped() -> Any:
    import torch

    class ClippedAdamW(torch.optim.AdamW):
        """AdamW behind a clip of the gradients' common norm."""

        def step(self, closure: Any = None) -> Any:
            torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], CLIP)
            return super().step(closure)

    return ClippedAdamW
