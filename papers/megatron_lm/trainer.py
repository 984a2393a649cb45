"""One rank of a training: its stages, the pipeline that runs them, and what the grid sums up behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim.adamw import adamw

from common.distributed import Group
from papers.megatron_lm.config import Fault
from papers.megatron_lm.engine import Pipeline
from papers.megatron_lm.layout import Layout
from papers.megatron_lm.model_torch import Stage
from papers.megatron_lm.schedule import Kind, generate
from papers.megatron_lm.shape import Shape, axis_of, decays, join


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a layout is run; none of it but dropout, rates, clip and fault changes what is computed.

    Attributes:
        schedule: None takes 1F1B, interleaved where there are chunks.
        scatter: messages between stages are shared out over the tensor ranks.
        recompute: layers keep their input alone.
        bucket: bytes of gradients that go into one all-reduce over the replicas.
        clip: largest norm of the whole gradient.
    """

    schedule: Kind | None = None
    scatter: bool = True
    recompute: bool = False
    dropout: float = 0.0
    rate: float = 1e-3
    decay: float = 0.1
    clip: float = 1.0
    bucket: int = 1 << 20
    dtype: torch.dtype = torch.float32
    seed: int = 0
    fault: Fault = Fault.none


class Trainer:
    """A rank of the grid (pipeline slowest, tensor fastest, so that tensor ranks are neighbours in a node).

    Attributes:
        pp, dp, tp: its groups. stages: its chunks of the model. pipeline: the engine of the last batch.
        moments, steps: AdamW's running means of gradient and square by name, and its updates so far.
    """

    def __init__(
        self, group: Group, shape: Shape, layout: Layout, weights: dict[str, np.ndarray] | None, options: Options
    ) -> None:
        layout.check(shape, group.size)
        self.shape, self.layout, self.options = shape, layout, options
        grid = group.grid(pp=layout.pipeline, dp=layout.data, tp=layout.tensor)
        self.world, self.pp, self.dp, self.tp = group, grid["pp"], grid["dp"], grid["tp"]
        self.stages = [
            Stage(
                shape, layout, layout.stage(self.pp.rank, chunk), self.tp, recompute=options.recompute, dropout=options.dropout,
                dtype=options.dtype, device=group.device,
            )
            for chunk in range(layout.chunks)
        ]  # fmt: skip
        if weights is not None:
            for stage in self.stages:
                stage.load(weights)
        self.moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in self.parameters()}
        self.steps = 0
        self.pipeline: Pipeline | None = None

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """This rank's shards by the names of the whole parameters; a tied copy has the name of the embedding."""
        for stage in self.stages:
            yield from stage.named_parameters()

    def step(self, tokens: Int[np.ndarray, "batch window"], number: int = 0) -> float:
        """One update on a global batch, the same array on all ranks; returns its loss before it."""
        loss = self.gradients(tokens, number)
        self.clip()
        self.update()
        return loss

    def gradients(self, tokens: Int[np.ndarray, "batch window"], number: int = 0) -> float:
        """Leave in ``.grad`` of every shard its part of the gradient of the mean loss, which is returned."""
        losses = self.passes(tokens, number)
        self._sum_tied()
        self._average_replicas()
        loss = torch.stack(losses).sum() if losses else torch.zeros((), dtype=self.options.dtype, device=self.world.device)
        return float(self.pp.broadcast(self.dp.all_reduce(loss) / self.dp.size, self.pp.size - 1))

    def passes(self, tokens: Int[np.ndarray, "batch window"], number: int = 0) -> list[Tensor]:
        """The forward and backward passes of this replica's part of the batch, nothing summed; losses over m at the last stage."""
        layout = self.layout
        count = layout.microbatches(len(tokens))
        if tokens.shape[1] - 1 > self.shape.context:
            raise ValueError(f"sequences of {tokens.shape[1] - 1} tokens; the model has {self.shape.context} positions")
        mine = torch.from_numpy(np.split(tokens, self.dp.size)[self.dp.rank]).to(self.world.device)
        for stage in self.stages:
            stage.batch, stage.scale = list(mine.split(layout.microbatch)), 1.0 / count
            stage.first_sequence, stage.seed = self.dp.rank * len(mine), self.options.seed + number
        for _, weight in self.parameters():
            weight.grad = None
        kind = self.options.schedule or (Kind.interleaved if layout.chunks > 1 else Kind.one_f_one_b)
        schedule = generate(kind, self.pp.size, count, layout.chunks)
        boundary = (layout.microbatch, tokens.shape[1] - 1, self.shape.width), self.options.dtype
        self.pipeline = Pipeline(self.pp, schedule, self.stages, boundary, self.tp, self.options.scatter)
        return self.pipeline.run()

    def _sum_tied(self) -> None:
        """The embedding is used at both ends of the model: both copies get the sum of both gradients."""
        p = self.pp.size
        if p == 1 or self.pp.rank not in (0, p - 1) or self.options.fault is Fault.tied:
            return
        stage = self.stages[0] if self.pp.rank == 0 else self.stages[-1]
        gradient, other = stage.embedding.weight.grad, p - 1 - self.pp.rank
        assert gradient is not None
        theirs = torch.empty_like(gradient)
        self.pp.exchange(send=[(gradient, other)], receive=[(theirs, other)]).wait()
        gradient.add_(theirs)

    def _average_replicas(self) -> None:
        """Mean over the replicas, in buckets: the next is packed while the last is under way."""
        if self.dp.size == 1 or self.options.fault is Fault.replicas:
            return
        under_way = []
        for bucket in _buckets([w.grad for _, w in self.parameters() if w.grad is not None], self.options.bucket):
            flat = torch.cat([gradient.flatten() for gradient in bucket]) / self.dp.size
            under_way.append((flat, bucket, self.dp.all_reduce_into(flat)))
        for flat, bucket, pending in under_way:
            pending.wait()
            for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def norm(self) -> Tensor:
        """Of the whole gradient: what several ranks hold counts once."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for stage in self.stages:
            for name, weight in stage.named_parameters():
                tied_copy = name == "embedding.weight" and not stage.first
                if not tied_copy and (axis_of(name) is not None or self.tp.rank == 0) and weight.grad is not None:
                    total += weight.grad.double().square().sum()
        return self.pp.all_reduce(self.tp.all_reduce(total)).sqrt()

    def clip(self) -> None:
        """Scale the gradient so that its global norm is at most ``clip``."""
        factor = (self.options.clip / (self.norm() + 1e-6)).clamp(max=1.0)
        for _, weight in self.parameters():
            if weight.grad is not None:
                weight.grad.mul_(factor.to(weight.grad.dtype))

    def update(self) -> None:
        """One step of AdamW on this rank's shards."""
        self.steps += 1
        for kind in (True, False):
            owned = [(name, weight) for name, weight in self.parameters() if decays(name) == kind]
            # The function, not the class: that would load torch's compiler, which takes seconds in every process.
            adamw(
                [weight.data for _, weight in owned],
                [weight.grad for _, weight in owned if weight.grad is not None],
                [self.moments[name][0] for name, _ in owned],
                [self.moments[name][1] for name, _ in owned],
                [],
                [torch.tensor(float(self.steps - 1)) for _ in owned],
                foreach=False,
                amsgrad=False,
                maximize=False,
                beta1=0.9,
                beta2=0.95,
                eps=1e-8,
                lr=self.options.rate,
                weight_decay=self.options.decay if kind else 0.0,
            )

    def shards(self, what: str = "weight") -> dict[str, Any]:
        """This rank's place and its shards of "weight" or "grad", to be put together by :func:`assemble`."""
        arrays: dict[str, np.ndarray] = {}
        for name, weight in self.parameters():
            value = weight if what == "weight" else weight.grad
            if value is not None:
                arrays.setdefault(name, value.detach().cpu().numpy())
        return {"pp": self.pp.rank, "dp": self.dp.rank, "tp": self.tp.rank, "arrays": arrays}


def assemble(ranks: list[dict[str, Any]], shape: Shape) -> dict[str, np.ndarray]:
    """Whole arrays from what all ranks returned from :meth:`Trainer.shards`."""
    found: dict[str, list[np.ndarray]] = {}
    seen: dict[str, int] = {}
    for each in sorted(ranks, key=lambda each: (each["pp"], each["tp"])):
        for name, array in each["arrays"].items() if each["dp"] == 0 else ():
            if seen.setdefault(name, each["pp"]) == each["pp"]:  # the tied copy of the last stage is left out
                found.setdefault(name, []).append(array)
    return {name: join(name, shards, shape.vocabulary) for name, shards in found.items()}


def _buckets(gradients: list[Tensor], limit: int) -> Iterable[list[Tensor]]:
    """Gradients from the last, which are ready first, in groups of at most ``limit`` bytes, one at least."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in reversed(gradients):
        if bucket and size + gradient.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
