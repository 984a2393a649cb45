"""Training the encoder on a grid of ranks: data x pipeline x tensor x sequence, or in one process.

A rank's loss is its share of the mean over the whole batch: its sum divided by what is counted in all of it. So gradients
of the weights are sums over the ranks of sequence and data, and need no factor. Stages run GPipe's schedule: all
micro-batches forward, then all backward (Huang et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.agreement import relative_error
from common.distributed import Group
from common.models.weights import from_torch, to_torch
from papers.sequence_parallelism.data import Batch, chunk, rows
from papers.sequence_parallelism.encoder import COLUMNS, Place, Shape, Weights, initial_weights, part
from papers.sequence_parallelism.model_torch import Encoder
from papers.sequence_parallelism.ring_torch import Ring, ring_attention

AXES = ("data", "pipe", "tensor", "sequence")


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        axes: ranks along each of :data:`AXES`; those that are left out have one.
        batches: the whole batch of each step.
        held: a batch whose loss is taken before and after.
        rate: Adam's.
        micro: micro-batches of a step, where there are stages.
        split: a border between stages is crossed in parts, one for each rank of the tensor group, and gathered behind it.
        late, divided, alone: faults, for the controls: see :class:`.ring_torch.Ring`; gradients of q, k and v divided by the
            ranks; gradients of the weights not summed over the sequence.
    """

    shape: Shape
    batches: Sequence[Batch]
    axes: dict[str, int] = field(default_factory=dict)
    held: Batch | None = None
    seed: int = 0
    rate: float = 1e-3
    dtype: str = "float64"
    micro: int = 2
    pad: bool = False
    split: bool = False
    reduce: str = "scatter"
    late: int = 0
    divided: bool = False
    alone: bool = False

    @property
    def ranks(self) -> int:
        return int(np.prod([self.axes.get(axis, 1) for axis in AXES]))


class Trained(NamedTuple):
    """What one rank has found.

    Attributes:
        losses: its shares of the token loss and the order loss at each step; the sums over all ranks are the losses.
        held: shares of the held-out token loss, before and after.
        weights: what it has of the final weights.
        gradients: of the last step.
        place: where it stands.
        traffic: bytes it has sent in all steps together, by (group, kind); seconds are not counted here.
    """

    losses: list[tuple[float, float]]
    held: list[float]
    weights: Weights
    gradients: Weights
    place: Place
    traffic: dict[tuple[str, str], float]


def train(group: Group, job: Job) -> Trained:
    """One rank's part of a training.

    Raises:
        ValueError: the grid is not as large as the group, or does not fit the model or the batch.
    """
    rank = Rank(group, job)
    held = [rank.held_loss()] if job.held else []
    before = {(row["group"], row["kind"]): row["bytes"] for row in group.traffic.rows()}
    losses = [rank.step(batch) for batch in job.batches]
    after = {
        (row["group"], row["kind"]): row["bytes"] - before.get((row["group"], row["kind"]), 0) for row in group.traffic.rows()
    }
    held += [rank.held_loss()] if job.held else []
    gradients = {name: p.grad.numpy(force=True).copy() for name, p in rank.model.named_parameters() if p.grad is not None}
    return Trained(losses, held, from_torch(rank.model), gradients, rank.place, after)


class Rank:
    """A rank's model, optimizer and groups."""

    def __init__(self, group: Group, job: Job) -> None:
        self.job = job
        self.axes = group.grid(**{axis: job.axes.get(axis, 1) for axis in AXES})
        at = {axis: (each.rank, each.size) for axis, each in self.axes.items()}
        self.place = Place(at["tensor"], at["sequence"], at["pipe"])
        # Chunks are compared once a step, not in every layer.
        self.ring = Ring(self.axes["sequence"], reduce=job.reduce, late=job.late, check=False)
        tensor = self.axes["tensor"] if at["tensor"][1] > 1 else None
        sequence = self.axes["sequence"] if at["sequence"][1] > 1 else None
        dtype = getattr(torch, job.dtype)
        self.device = group.device
        self.model = Encoder(job.shape, self.attend, self.place, tensor, sequence, dtype).to(self.device)
        to_torch(self.model, part(initial_weights(job.shape, job.seed), job.shape, self.place))
        self.optimizer = Adam(self.model, job.rate)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.job.divided and q.requires_grad:
            for each in (q, k, v):
                each.register_hook(lambda gradient: gradient / self.ring.group.size)
        return ring_attention(q, k, v, self.ring, mask=mask)

    def step(self, batch: Batch) -> tuple[float, float]:
        """Forward, backward, sum the gradients, move; this rank's shares of the two losses before that."""
        self.model.zero_grad()
        shares = self.run(batch, backward=True)
        self.sum_gradients()
        self.optimizer.step()
        return shares

    @torch.no_grad()
    def held_loss(self) -> float:
        assert self.job.held is not None
        return self.run(self.job.held, backward=False)[0]

    def run(self, batch: Batch, backward: bool) -> tuple[float, float]:
        """All micro-batches forward, then backward."""
        data, sequence = self.axes["data"], self.axes["sequence"]
        mine = chunk(rows(batch, data.rank, data.size), sequence.rank, sequence.size, self.job.pad)
        sequence.agree("the shape of a rank's chunk of tokens", mine.tokens.shape)
        count = self.job.micro if self.axes["pipe"].size > 1 else 1
        ends = [self.forward(rows(mine, index, count)) for index in range(count)]
        if backward:
            for entry, end, _ in ends:
                self.backward(entry, end)
        totals = np.sum([shares for *_, shares in ends], axis=0)
        # Ranks of a tensor group all have the same loss; it counts once.
        return (float(totals[0]), float(totals[1])) if self.place.tensor[0] == 0 else (0.0, 0.0)

    def forward(self, micro: Batch) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """What comes into this stage, what leaves it (or the loss), and the shares of the losses."""
        tokens, labels, segments, order = (torch.from_numpy(each).to(self.device) for each in micro[:4])
        mask = None if micro.seen is None else torch.from_numpy(micro.seen).to(self.device)
        if self.place.first:
            x = self.model.embed(tokens, segments, micro.start)
            entry = x
        else:
            like = next(self.model.parameters())
            entry = self.receive(like.new_empty(*micro.tokens.shape, self.job.shape.width), -1).requires_grad_()
            x = entry
        x = self.model(x, mask)
        if not self.place.last:
            self.send(x.detach(), +1)
            return entry, x, (0.0, 0.0)
        of_tokens, of_order = self.model.token_loss(x, labels) / micro.asked, x.new_zeros(())
        if self.place.sequence[0] == 0:
            of_order = self.model.order_loss(x, order) / micro.rows
        return entry, of_tokens + of_order, (of_tokens.item(), of_order.item())

    def backward(self, entry: Tensor, end: Tensor) -> None:
        if self.place.last:
            end.backward()
        else:
            end.backward(self.receive(torch.empty_like(end), +1))
        if not self.place.first:
            assert entry.grad is not None
            self.send(entry.grad, -1)

    def send(self, x: Tensor, step: int) -> None:
        pipe, tensor = self.axes["pipe"], self.axes["tensor"]
        if self.job.split:
            x = x.reshape(-1).chunk(tensor.size)[tensor.rank]
        pipe.exchange(send=[(x.contiguous(), pipe.rank + step)]).wait()

    def receive(self, out: Tensor, step: int) -> Tensor:
        pipe, tensor = self.axes["pipe"], self.axes["tensor"]
        if not self.job.split:
            pipe.exchange(receive=[(out, pipe.rank + step)]).wait()
            return out
        own = out.new_empty(out.numel() // tensor.size)
        pipe.exchange(receive=[(own, pipe.rank + step)]).wait()
        tensor.gather_into(out.view(-1), own).wait()
        return out

    def sum_gradients(self) -> None:
        """Over sequence and data; Linformer's columns belong to a rank of the sequence alone."""
        for local in (False, True):
            found = [p for name, p in self.model.named_parameters() if bool(COLUMNS.search(name)) == local]
            if not found:
                continue
            # The order's head has a gradient on the first rank of a sequence only.
            flat = torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in found])
            if not local and not self.job.alone:
                flat = self.axes["sequence"].all_reduce(flat)
            flat = self.axes["data"].all_reduce(flat)
            for p, each in zip(found, flat.split([p.numel() for p in found]), strict=True):
                p.grad = each.view_as(p).clone()


class Adam:
    """Kingma and Ba 2015, algorithm 1. PyTorch's own imports its compiler, which costs every rank two seconds."""

    def __init__(self, model: torch.nn.Module, rate: float) -> None:
        self.parameters, self.rate, self.steps = list(model.parameters()), rate, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self, first: float = 0.9, second: float = 0.999, epsilon: float = 1e-8) -> None:
        self.steps += 1
        for p, (mean, square) in zip(self.parameters, self.moments, strict=True):
            assert p.grad is not None
            mean.lerp_(p.grad, 1 - first)
            square.mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
            scale = (square / (1 - second**self.steps)).sqrt_().add_(epsilon)
            p.addcdiv_(mean, scale, value=-self.rate / (1 - first**self.steps))


def serial(job: Job) -> Trained:
    """The same training in one process, without groups or chunks: the plain model, the plain means of the losses."""
    model = Encoder(job.shape, dtype=getattr(torch, job.dtype))
    to_torch(model, initial_weights(job.shape, job.seed))
    optimizer = Adam(model, job.rate)

    def both(batch: Batch) -> tuple[Tensor, Tensor]:
        tokens, labels, segments, order = (torch.from_numpy(each) for each in batch[:4])
        x = model(model.embed(tokens, segments))
        return model.token_loss(x, labels) / (labels >= 0).sum(), model.order_loss(x, order) / len(order)

    def held() -> list[float]:
        with torch.no_grad():
            return [both(job.held)[0].item()] if job.held else []

    losses, before = [], held()
    for batch in job.batches:
        tokens, order = both(batch)
        model.zero_grad()
        (tokens + order).backward()
        optimizer.step()
        losses.append((tokens.item(), order.item()))
    gradients = {name: p.grad.numpy(force=True).copy() for name, p in model.named_parameters() if p.grad is not None}
    return Trained(losses, before + held(), from_torch(model), gradients, Place(), {})


def losses(found: Sequence[Trained]) -> np.ndarray:
    """(step, 2): token loss and order loss of the whole batch."""
    return np.sum([each.losses for each in found], axis=0)


def errors(found: Sequence[Trained], want: Trained, shape: Shape, what: str = "weights") -> float:
    """Largest relative error of the loss curve and of the final weights, or gradients, against one process."""
    worst = relative_error(losses(found), np.array(want.losses))
    for each in found:
        mine = part(getattr(want, what), shape, each.place)
        worst = max(worst, *(relative_error(getattr(each, what)[name], array) for name, array in mine.items()))
    return worst


def faults(job: Job, fault: str) -> Job:
    """The job with a fault switched on, by its name."""
    change: dict[str, dict[str, Any]] = {"late": {"late": 1}, "divided": {"divided": True}, "alone": {"alone": True}}
    return replace(job, **change.get(fault, {}))
