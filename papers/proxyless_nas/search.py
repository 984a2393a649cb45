"""The search in PyTorch: weight and architecture steps in turn, derivation, and random search for comparison."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.training import Store
from papers.proxyless_nas import state
from papers.proxyless_nas.config import Config, Method
from papers.proxyless_nas.cost import Cost
from papers.proxyless_nas.data import Batches, Part, Task
from papers.proxyless_nas.gates import Gates, Reinforce, rescale, reward, sample, softmax
from papers.proxyless_nas.mixed_torch import probabilities
from papers.proxyless_nas.objective import BETAS, MOMENTUM, RATE, SMOOTHING, SPREAD, WARM_RATE, WEIGHT_DECAY, Objective
from papers.proxyless_nas.space import ZERO, Candidate, Space
from papers.proxyless_nas.supernet_torch import SuperNet


@dataclass(frozen=True, eq=False)
class Found:
    """What a search ends with.

    Attributes:
        picks: index of the chosen candidate of each place.
        history: probabilities of each place, a row for each architecture step.
        expected: expected cost after each architecture step.
        model: the super-network with the weights that the search has trained.
    """

    picks: tuple[int, ...]
    history: list[np.ndarray]
    expected: np.ndarray
    model: SuperNet


@dataclass
class Search:
    """Weights and architecture parameters with their optimizers.

    Attributes:
        alphas: one float64 vector for each place, on the CPU.
        clears: False, a control, leaves zeros in the gradients of inactive candidates.
        sees_inactive, rescales: False, a control, leaves out products with inactive candidates, the offset of mode "two".
    """

    model: SuperNet
    cost: Cost
    objective: Objective
    alphas: list[Tensor]
    alpha_rate: float
    clears: bool = True
    sees_inactive: bool = True
    rescales: bool = True
    reinforce: Reinforce = field(default_factory=Reinforce)

    def __post_init__(self) -> None:
        self.model.train()
        options = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": True}
        self.sgd = torch.optim.SGD(self.model.parameters(), RATE, **options)
        self.adam = torch.optim.Adam(self.alphas, self.alpha_rate, betas=BETAS)

    @property
    def space(self) -> Space:
        return self.model.space

    def draw(self, mode: str, rng: np.random.Generator) -> list[Gates]:
        return [sample(alpha.detach().numpy(), mode, rng) for alpha in self.alphas]

    def weight_step(self, images: Tensor, labels: Tensor, gates: Sequence[Gates], rate: float) -> None:
        """Train what the active candidates use. All other gradients are None: SGD passes over them."""
        for group in self.sgd.param_groups:
            group["lr"] = rate
        self.sgd.zero_grad(set_to_none=self.clears)
        F.cross_entropy(self.model(images, gates), labels, label_smoothing=SMOOTHING).backward()
        self.sgd.step()

    def architecture_step(self, images: Tensor, labels: Tensor, gates: Sequence[Gates], mode: str) -> None:
        """Adam on the gradient through the gates; places whose active candidate is Zero are left as they are."""
        logits = self.model(images, gates, self.alphas, mode, self.sees_inactive)
        loss = F.cross_entropy(logits, labels).to("cpu", torch.float64)
        gradients = torch.autograd.grad(self.objective(loss, self.expected(gates), torch.log), self.alphas)
        before = [alpha.detach().numpy().copy() for alpha in self.alphas]
        for alpha, gradient, gate, place in zip(self.alphas, gradients, gates, self.space.places, strict=True):
            alpha.grad = None if place.candidates[gate.active] == ZERO else gradient
        self.adam.step()
        if mode != "two" or not self.rescales:
            return
        with torch.no_grad():
            for alpha, old, gate in zip(self.alphas, before, gates, strict=True):
                if alpha.grad is not None:
                    alpha.copy_(torch.from_numpy(rescale(old, alpha.numpy(), gate)))

    def expected(self, gates: Sequence[Gates]) -> Tensor:
        """E[cost] over the candidates that the gates involve."""
        total = torch.tensor(self.cost.rest, dtype=torch.float64)
        for alpha, gate, cost in zip(self.alphas, gates, self.cost.of, strict=True):
            total = total + probabilities(alpha, gate) @ torch.from_numpy(cost)
        return total

    def reinforce_step(self, images: Tensor, labels: Tensor, rng: np.random.Generator, networks: int = 10) -> None:
        """Adam on the gradient from rewards of sampled networks on one batch; without a weight of the cost, accuracy alone."""
        drawn = [self.draw("path", rng) for _ in range(networks)]
        picks = np.array([[gate.active for gate in gates] for gates in drawn])
        rewards = []
        for gates, own in zip(drawn, picks.tolist(), strict=True):
            accuracy = score(self.model, gates, [(images, labels)])[1]
            rewards.append(
                reward(accuracy, self.cost.total(own), self.objective.reference) if self.objective.weight else accuracy
            )
        gradients = self.reinforce.gradients([alpha.detach().numpy() for alpha in self.alphas], picks, np.array(rewards))
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = torch.from_numpy(gradient)
        self.adam.step()

    def picks(self) -> tuple[int, ...]:
        """The likeliest candidate of each place: the network that is derived."""
        return tuple(int(alpha.argmax()) for alpha in self.alphas)


def begin(space: Space, rng: np.random.Generator) -> list[Tensor]:
    """Architecture parameters, N(0, 0.001^2)."""
    draws = [rng.normal(0.0, SPREAD, len(place.candidates)) for place in space.places]
    return [torch.from_numpy(draw).requires_grad_() for draw in draws]


def warmed_up(task: Task, config: Config, cost: Cost, seed: int, store: Store | None = None) -> SuperNet:
    """The super-network after weight steps with uniform gates; every search of a seed begins with it."""
    search = _search(SuperNet(task.space, seed, depthwise).to(device()), config, cost, seed, weight=0.0)
    _steps(search, task, config, (seed, 0), config.warm_up, WARM_RATE, learns=False, store=store)
    return search.model


def run(model: SuperNet, task: Task, config: Config, cost: Cost, seed: int, weight: float, store: Store | None = None) -> Found:
    """Search from a copy of these weights.

    Args:
        weight: of the cost in the loss.
        store: keeps the state from time to time; a search that was cut short goes on from there and ends as if it had not been.
    """
    # Without the mechanism there is no latency term either.
    search = _search(copy.deepcopy(model), config, cost, seed, weight if config.mechanism else 0.0)
    rows = _steps(search, task, config, (seed, 1), config.steps, RATE, learns=True, store=store)
    columns, at = [], 0
    for place in task.space.places:
        columns.append(rows[:, at : at + len(place.candidates)])
        at += len(place.candidates)
    expected = cost.rest + rows @ np.concatenate(cost.of)
    return Found(search.picks(), columns, expected, search.model)


def at_random(model: SuperNet, task: Task, config: Config, cost: Cost, seed: int, weight: float) -> tuple[int, ...]:
    """The best of random networks by the same objective, at the cost of :func:`run`.

    The shared weights are trained for as many steps, with uniform gates. An architecture step passes once through every candidate
    and back through the active one, which is worth two passes; as many passes on images of the same part score the networks, each
    on the same four batches.
    """
    search = _search(copy.deepcopy(model), config, cost, seed, weight)
    _steps(search, task, config, (seed, 2), config.steps, RATE, learns=False)
    passes = (config.steps // config.alpha_every) * (max(len(place.candidates) for place in task.space.places) + 2)
    held, rng = Batches(task.alphas, config.batch, (seed, 3)), np.random.default_rng((seed, 3))
    shared = [tensors(held(step)) for step in range(4)]
    best, least = (), math.inf
    for _ in range(max(passes // len(shared), 1)):
        picks = draw_uniformly(task.space, rng)
        value = search.objective(score(search.model, fixed(task.space, picks), shared)[0], cost.total(picks))
        if value < least:
            best, least = picks, value
    return best


def _steps(
    search: Search, task: Task, config: Config, seed: tuple[int, ...], steps: int, rate: float, *, learns: bool,
    store: Store | None = None,
) -> np.ndarray:  # fmt: skip
    """Weight steps, and where it learns architecture steps among them; all probabilities after each of the latter, in a row.

    Batches and gates are functions of seed and step, so a state holds no generators.
    """
    train, held = (Batches(part, config.batch, (*seed, i)) for i, part in enumerate((task.weights, task.alphas)))
    first, rows = state.load(store, search) if store else (0, [])
    for step in range(first, steps):
        rng = np.random.default_rng((*seed, 2, step))
        gates = search.draw("path", rng) if learns else fixed(task.space, draw_uniformly(task.space, rng))
        search.weight_step(*tensors(train(step)), gates, rate * cosine(step, steps))
        if learns and (step + 1) % config.alpha_every == 0:
            batch = tensors(held(step // config.alpha_every))
            if config.method is Method.reinforce:
                search.reinforce_step(*batch, rng)
            else:
                mode = config.mode.value
                search.architecture_step(*batch, search.draw(mode, rng), mode)
            rows.append(np.concatenate([softmax(alpha.detach().numpy()) for alpha in search.alphas]))
        if store and (step + 1) % state.EVERY == 0:
            state.save(store, search, step + 1, rows)
    return np.array(rows)


def draw_uniformly(space: Space, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(rng.integers(len(place.candidates))) for place in space.places)


def fixed(space: Space, picks: Sequence[int]) -> list[Gates]:
    """Gates of given candidates."""
    return [Gates(int(pick), tuple(range(len(place.candidates)))) for pick, place in zip(picks, space.places, strict=True)]


def chosen(space: Space, picks: Sequence[int]) -> tuple[Candidate, ...]:
    return tuple(place.candidates[pick] for pick, place in zip(picks, space.places, strict=True))


@torch.no_grad()
def score(model: SuperNet, gates: Sequence[Gates], parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean loss and accuracy of one network with the shared weights, normalised by the statistics of each batch."""
    losses, right = [], []
    for images, labels in parts:
        logits = model(images, gates)
        losses.append(F.cross_entropy(logits, labels).item())
        right.append((logits.argmax(1) == labels).double().mean().item())
    return float(np.mean(losses)), float(np.mean(right))


def cosine(step: int, steps: int) -> float:
    """From 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """This repository's depthwise convolution, whose gradients are fast on a CPU for kernels of 5 and 7 too."""
    from kernels.depthwise_conv import depthwise_conv

    return depthwise_conv(x, weight, stride=stride)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _search(model: SuperNet, config: Config, cost: Cost, seed: int, weight: float) -> Search:
    works = config.mechanism
    objective = Objective(cost.uniform, weight, config.form)
    rate, alphas = config.alpha_rate if works else 0.0, begin(model.space, np.random.default_rng((seed, 4)))
    return Search(model, cost, objective, alphas, rate, sees_inactive=works, rescales=works)


def tensors(part: Part) -> tuple[Tensor, Tensor]:
    """Images and labels where the search runs."""
    return torch.from_numpy(part[0]).to(device()), torch.from_numpy(part[1]).to(device())
