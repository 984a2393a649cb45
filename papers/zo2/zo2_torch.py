"""ZO2 in PyTorch: both forward passes of a block at one visit, the update of a step at the next; twin: ``zo2_jax``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from common.architecture import Transformer
from common.models.transformer_torch import TransformerLM
from common.models.weights import array_of
from common.offload import Arena, Trace
from papers.zo2.config import Schedule
from papers.zo2.mezo_torch import next_token_loss
from papers.zo2.noise_torch import Counted, Noise
from papers.zo2.rule import Rule
from papers.zo2.stream_torch import Link, Stream, Tensors, Visit
from papers.zo2.tiers import StoredTier, Tier
from papers.zo2.units import Unit

DUAL = (Schedule.zo2, Schedule.eager)


class ZO2:
    """MeZO-SGD on a decoder whose blocks are elsewhere; the same weights as :class:`papers.zo2.mezo_torch.MeZO`, bit by bit.

    Args:
        tier: where the blocks are between visits.
        arena: the device. It holds what is resident (embedding, positions, last norm, head; a second copy of a tied
            embedding, which is needed perturbed both ways until the head is done), the slots of the blocks, and with a
            narrower wire the block that is computed.
        schedule: how often a step visits each block; ``zo2`` is the paper's, the others are what it is compared with.
        dtype: of weights and computation on the device.
        wire: of the blocks on the host and in the copies; None: dtype. Narrower is the paper's AMP mode.
        overlap: whether the next block arrives and the last one leaves during the computation.
        bucket: whether a block is one copy into a slot that stays; else each tensor has its own allocation and copy.
        offloaded: numbers of the blocks that travel; None: all. The others stay on the device.
        trace: gets every copy and computation; lanes "upload", "compute", "offload".

    Raises:
        OutOfBudget: the arena is too small; says what is needed and what it has.
        ValueError: no block to stream.
    """

    def __init__(
        self,
        architecture: Transformer,
        tier: Tier,
        arena: Arena,
        rule: Rule,
        *,
        noise: Noise | None = None,
        schedule: Schedule = Schedule.zo2,
        dtype: torch.dtype = torch.float32,
        wire: torch.dtype | None = None,
        overlap: bool = True,
        bucket: bool = True,
        offloaded: Sequence[int] | None = None,
        link: Link | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.architecture, self.rule, self.noise, self.schedule = architecture, rule, noise or Counted(), schedule
        self.trace = trace or Trace()
        self.stream = Stream(
            architecture, tier, arena, dtype=dtype, wire=wire or dtype, overlap=overlap, bucket=bucket, offloaded=offloaded,
            plus=schedule in DUAL, link=link or Link(), trace=self.trace,
        )  # fmt: skip
        self.units = self.stream.units
        self.pending: tuple[float, Any] | None = None
        self.steps = 0

    @torch.no_grad()
    def step(self, batch: Int[Tensor, "batch length"], seed: int) -> float:
        """One step on a batch, inputs ``[:, :-1]`` and targets ``[:, 1:]``; returns L+.

        The update that this step finds is applied when the blocks are next visited, or by :meth:`flush`.

        Raises:
            FloatingPointError: a loss is not finite; the weights are as before the step.
        """
        now, epsilon = self.noise.start(seed), self.rule.epsilon
        if self.schedule in DUAL:
            plus, minus = self._dual(batch, now)
        else:
            plus = self._single(batch, now, "plus", epsilon, self._owed() if self.pending else None)
            self.pending = None
            minus = self._single(batch, now, "minus", -2 * epsilon, None)
        try:
            self.pending = (self.rule.gradient(plus, minus), now)
        except FloatingPointError:
            if self.schedule not in DUAL:
                self.stream.run(_walk(now, lambda theta, state: self.noise.add(theta, epsilon, state)))
            raise
        self.steps += 1
        if self.schedule in (Schedule.eager, Schedule.three):
            self.flush()
        return plus

    @torch.no_grad()
    def flush(self) -> None:
        """Apply the update that is pending: one more visit of all blocks. Without it the weights lag one step behind."""
        if self.pending is not None:
            self.stream.run(self._owed())
            self.pending = None

    @torch.no_grad()
    def evaluate(self, batch: Int[Tensor, "batch length"]) -> float:
        """The loss of the weights as they are after all steps: a pending update is flushed first."""
        self.flush()
        hidden: dict[str, Tensor] = {}
        self.stream.run(lambda unit, module, _: self._forward(unit, module, hidden, "plain", batch), write_back=False)
        return hidden["plain"].item()

    def weights(self, flush: bool = True) -> dict[str, Tensor]:
        """Copies of all weights, by name; a pending update is flushed first, if it is not asked to stay."""
        if flush:
            self.flush()
        found: dict[str, Tensor] = {}
        self.stream.run(lambda _, __, theta: found.update({p.name: t.cpu().clone() for p, t in theta}), write_back=False)
        return found

    def load(self, of: Callable[[Unit], Mapping[str, np.ndarray]]) -> None:
        """Set all weights; ``of(unit)`` gives those of one unit by their full names, so that they need not exist at once."""
        self.stream.load(of)

    def load_model(self, model: TransformerLM) -> None:
        """Set all weights from a model in memory.

        Raises:
            ValueError: a tensor that has two names, which would be updated twice.
        """
        owners: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            other = owners.setdefault(parameter.data_ptr(), name)
            if other != name:
                raise ValueError(f"{other} and {name} are one tensor: a block that travels must own its weights; untie them")
        weights = {name: array_of(parameter) for name, parameter in model.named_parameters()}
        self.load(lambda unit: {each.name: weights[each.name] for each in unit.parameters})

    def save(self) -> None:
        """Commit the state between two steps to a :class:`StoredTier`; a kill during a later step comes back to it."""
        tier = self._stored()
        self.stream.settle()
        arrays = {parameter.name: array_of(tensor) for parameter, tensor in (*self.stream.first, *self.stream.tail)}
        gradient = None
        if self.pending is not None:
            gradient, state = self.pending
            arrays["noise"] = array_of(state) if isinstance(state, Tensor) else np.array(state, np.uint64)
        tier.commit(arrays, {"steps": self.steps, "gradient": gradient})

    def resume(self) -> bool:
        """Take up the state of the last :meth:`save`; whether there was one."""
        found = self._stored().resume()
        if found is None:
            return False
        arrays, meta = found
        for tensors in (self.stream.first, self.stream.tail):
            self.stream.assign(tensors, arrays)
        self.steps, self.pending = meta["steps"], None
        if meta["gradient"] is not None:
            noise = arrays["noise"]
            self.pending = (meta["gradient"], torch.from_numpy(noise) if noise.ndim else int(noise))
        return True

    def close(self) -> None:
        self.stream.close()

    def _dual(self, batch: Tensor, now: Any) -> tuple[float, float]:
        """At each unit: pending update, + forward, - forward, restore. A tied embedding is restored after the head."""
        hidden: dict[str, Tensor] = {}
        owed = self._owed() if self.pending else None
        epsilon, stream, state = self.rule.epsilon, self.stream, now

        def visit(unit: Unit, module: nn.Module, theta: Tensors) -> None:
            nonlocal state
            if owed:
                owed(unit, module, theta)
            start = state
            self.noise.add(theta, epsilon, start)
            self._forward(unit, module, hidden, "plus", batch)
            lasting = stream.plus is not None and unit is self.units.first
            if lasting:
                for (_, kept), (_, tensor) in zip(stream.plus or (), theta, strict=True):
                    kept.copy_(tensor)
            state = self.noise.add(theta, -2 * epsilon, start)
            self._forward(unit, module, hidden, "minus", batch)
            if not lasting:
                self.noise.add(theta, epsilon, start)

        stream.run(visit)
        if stream.plus is not None:
            self.noise.add(stream.first, epsilon, now)
        self.pending = None
        return hidden["plus"].item(), hidden["minus"].item()

    def _single(self, batch: Tensor, now: Any, sign: str, scale: float, owed: Visit | None) -> float:
        """One forward pass, each unit perturbed as it comes."""
        hidden: dict[str, Tensor] = {}
        add = _walk(now, lambda theta, state: self.noise.add(theta, scale, state))

        def visit(unit: Unit, module: nn.Module, theta: Tensors) -> None:
            if owed:
                owed(unit, module, theta)
            add(unit, module, theta)
            self._forward(unit, module, hidden, sign, batch)

        self.stream.run(visit)
        return hidden[sign].item()

    def _owed(self) -> Visit:
        """What units still owe from the last step: the update, and where a step ends perturbed, first the restoration."""
        assert self.pending is not None
        (gradient, start), rule, restore = self.pending, self.rule, self.schedule not in DUAL

        def apply(theta: Tensors, state: Any) -> Any:
            if restore:
                self.noise.add(theta, rule.epsilon, state)
            return self.noise.update(theta, rule.rate, gradient, rule.decay, state)

        return _walk(start, apply)

    def _forward(self, unit: Unit, module: nn.Module, hidden: dict[str, Tensor], sign: str, batch: Tensor) -> None:
        """Advance one of the two streams through a unit; after the tail it is the loss."""
        stream, tokens = self.stream, batch[:, :-1]
        if unit is self.units.first:
            x = stream.ends.embedding(tokens)
            hidden[sign] = x + stream.ends.positions.weight[: tokens.shape[1]] if self.architecture.positions == "learned" else x
        elif unit is self.units.tail:
            x = stream.ends.norm(hidden[sign])
            if self.units.tied:
                table = stream.plus if sign == "plus" and stream.plus is not None else stream.first
                logits = F.linear(x, table[0][1])
            else:
                logits = stream.ends.head(x)
            hidden[sign] = next_token_loss(logits, batch[:, 1:])
        else:
            rotary = stream.rotary[:, : tokens.shape[1]] if stream.rotary is not None else None
            hidden[sign] = module(hidden[sign], rotary, None)

    def _stored(self) -> StoredTier:
        if not isinstance(self.stream.tier, StoredTier):
            raise TypeError("only a StoredTier outlives the process; with blocks in host memory keep weights() instead")
        return self.stream.tier


def _walk(state: Any, apply: Callable[[Tensors, Any], Any]) -> Visit:
    """A visitor that threads the state of the noise through the units."""

    def visit(unit: Unit, module: nn.Module, theta: Tensors) -> None:
        nonlocal state
        state = apply(theta, state)

    return visit
