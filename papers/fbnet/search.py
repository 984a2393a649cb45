"""The search: weights and logits take turns, the temperature falls, and what is left is a distribution.

search = Search(space, costs, parts, config, seed)
search.run(store)                   # goes on from the store's last epoch, to the same bits
sample(search.theta, 6, rng)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.models.weights import array_of
from common.training import Store, warmup_cosine
from papers.fbnet.config import Config
from papers.fbnet.data import Part, Parts
from papers.fbnet.latency import Costs
from papers.fbnet.model_torch import StochasticSuperNet, gumbel_softmax, latency_of, loss_of
from papers.fbnet.sample import entropy, probabilities
from papers.fbnet.space import Space
from papers.fbnet.supernet import gumbel, tau_at


class Search:
    """State and steps of one search.

    Each epoch first trains the weights on one part of the images, by SGD, then the logits on another, by Adam; the first epochs
    train weights alone. Every step draws its own Gumbel noise, one for each layer. Source: the paper, sections 3.2 and 4.1.

    Attributes:
        epoch: epochs that are done.
        history: per epoch: loss and cross-entropy on the images of the architecture, temperature, expected latency in
            milliseconds, entropy.
        thetas: the logits after each epoch.
    """

    def __init__(self, space: Space, costs: Costs, parts: Parts, config: Config, seed: int) -> None:
        costs.check()
        self.space, self.costs, self.parts, self.config = space, costs, parts, config
        self.net = StochasticSuperNet(space, seed)
        self.rng = np.random.default_rng(seed)
        self.table = torch.from_numpy(costs.blocks).float()
        a = config
        self.weights_optimizer = torch.optim.SGD(
            self.net.weights(), a.search_rate, momentum=0.9, weight_decay=a.decay, fused=True
        )
        self.theta_optimizer = torch.optim.Adam([self.net.theta], a.theta_rate, weight_decay=a.theta_decay)
        self.schedule = warmup_cosine(a.epochs * a.weight_steps, 0, 0.0)
        self.epoch = 0
        self.history: dict[str, list[float]] = {name: [] for name in HISTORY}
        self.thetas: list[np.ndarray] = []

    @property
    def theta(self) -> np.ndarray:
        """The logits in float64."""
        return array_of(self.net.theta).astype(np.float64)

    @property
    def tau(self) -> float:
        return tau_at(self.epoch, self.config.tau, self.config.tau_decay)

    def run(self, store: Store | None = None, track: Callable[[Iterable[int]], Iterable[int]] = iter) -> None:
        """All epochs that are left; the state is kept behind each."""
        if store is not None:
            self.restore(store)
        for _ in track(range(self.epoch, self.config.epochs)):
            self.one_epoch()
            if store is not None:
                self.save(store)

    def one_epoch(self) -> None:
        a = self.config
        found: dict[str, list[float]] = {"loss": [], "cross-entropy": []}
        self.net.train()
        for step in range(a.weight_steps):
            self.weights_optimizer.param_groups[0]["lr"] = a.search_rate * self.schedule(self.epoch * a.weight_steps + step)
            self._step(self.parts.weights, self.weights_optimizer)
        for _ in range(a.theta_steps):
            # While logits wait, their images still tell how far the weights are.
            trains = self.epoch >= a.warm_epochs and a.searched
            loss, cross_entropy = self._step(self.parts.architecture, self.theta_optimizer if trains else None)
            found["loss"].append(loss)
            found["cross-entropy"].append(cross_entropy)
        row = {name: float(np.mean(values)) for name, values in found.items()}
        row |= {"tau": self.tau, "latency": self.costs.expected(probabilities(self.theta)), "entropy": entropy(self.theta)}
        for name, value in row.items():
            self.history[name].append(value)
        self.thetas.append(self.theta)
        self.epoch += 1

    def _step(self, part: Part, optimizer: torch.optim.Optimizer | None) -> tuple[float, float]:
        """One batch; (loss, cross-entropy) before the update."""
        images, labels = part.batch(self.rng.integers(len(part), size=self.config.batch))
        noise = torch.from_numpy(gumbel(tuple(self.net.theta.shape), self.rng)).float()
        masks = gumbel_softmax(self.net.theta, self.tau, noise=noise)
        with torch.set_grad_enabled(optimizer is not None):
            cross_entropy = F.cross_entropy(self.net(torch.from_numpy(images), masks), torch.from_numpy(labels))
            latency = latency_of(masks, self.table, self.costs.rest)
            loss = loss_of(cross_entropy, latency, self.config.alpha, self.config.beta)
        if optimizer is not None:
            self.net.zero_grad()
            wanted: list[Tensor] = optimizer.param_groups[0]["params"]
            loss.backward(inputs=wanted)
            optimizer.step()
        return float(loss.detach()), float(cross_entropy.detach())

    def save(self, store: Store) -> None:
        """Weights, logits, both optimizers, random numbers and history; the temperature follows from the epoch."""
        arrays = {f"net.{name}": array_of(tensor) for name, tensor in self.net.state_dict().items()}
        for which, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                kept = {key: value for key, value in state.items() if value is not None}
                arrays |= {f"{which}.{index}.{key}": array_of(torch.as_tensor(value)) for key, value in kept.items()}
        arrays |= {f"history.{name}": np.array(values) for name, values in self.history.items()}
        arrays["thetas"] = np.array(self.thetas)
        store.save(arrays, {"epoch": self.epoch, "tau": self.tau, "random": self.rng.bit_generator.state})

    def restore(self, store: Store) -> bool:
        """Go on from what was saved; False if nothing was."""
        saved = store.load()
        if saved is None:
            return False
        arrays, meta = saved
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        self.net.load_state_dict({name[4:]: each for name, each in tensors.items() if name.startswith("net.")})
        for which, optimizer in self._optimizers().items():
            state: dict[int, dict[str, Any]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"{which}."):
                    _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.history = {name: arrays[f"history.{name}"].tolist() for name in HISTORY}
        self.thetas, self.epoch = list(arrays["thetas"]), meta["epoch"]
        self.rng.bit_generator.state = meta["random"]
        return True

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"sgd": self.weights_optimizer, "adam": self.theta_optimizer}


HISTORY = ("loss", "cross-entropy", "tau", "latency", "entropy")
