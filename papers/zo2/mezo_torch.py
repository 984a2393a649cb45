"""MeZO with the whole model in memory: the definition that streaming must equal bit by bit; twin: ``mezo_jax``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from common.models.transformer_torch import TransformerLM
from papers.zo2.noise_torch import Counted, Noise
from papers.zo2.rule import Rule
from papers.zo2.units import units


def next_token_loss(logits: Float[Tensor, "batch seq vocabulary"], targets: Int[Tensor, "batch seq"]) -> Tensor:
    """Mean cross-entropy in float32: in float16 the difference of two losses would be lost."""
    return F.cross_entropy(logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten())


class MeZO:
    """MeZO-SGD on a decoder.

    Malladi et al. 2023, algorithm 1, in the order of the authors' code: theta + eps z, L+; - 2 eps z, L-; + eps z; update.
    """

    def __init__(self, model: TransformerLM, rule: Rule, noise: Noise | None = None) -> None:
        self.model, self.rule, self.noise = model, rule, noise or Counted()
        named = dict(model.named_parameters())
        self.tensors = [(each, named[each.name].data) for unit in units(model.architecture) for each in unit.parameters]

    @torch.no_grad()
    def step(self, batch: Int[Tensor, "batch length"], seed: int) -> float:
        """One step on a batch, inputs ``[:, :-1]`` and targets ``[:, 1:]``; returns L+."""
        rule, start, weights = self.rule, self.noise.start(seed), self.tensors
        self.noise.add(weights, rule.epsilon, start)
        plus = self._loss(batch)
        self.noise.add(weights, -2 * rule.epsilon, start)
        minus = self._loss(batch)
        self.noise.add(weights, rule.epsilon, start)
        self.noise.update(weights, rule.rate, rule.gradient(plus, minus), rule.decay, start)
        return plus

    def weights(self) -> dict[str, Any]:
        """Copies of all weights, by name."""
        return {parameter.name: tensor.clone() for parameter, tensor in self.tensors}

    def _loss(self, batch: Tensor) -> float:
        return next_token_loss(self.model(batch[:, :-1]), batch[:, 1:]).item()
