"""The space of 1,296 networks, small enough to score every one: how near to the best does the search come?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float64
from torch import Tensor

from common.ilp import Model
from papers.proxyless_nas.config import Config
from papers.proxyless_nas.cost import Cost
from papers.proxyless_nas.data import Part, Task
from papers.proxyless_nas.objective import Objective
from papers.proxyless_nas.search import Found, tensors
from papers.proxyless_nas.supernet_torch import SuperNet


def nearness(
    task: Task, config: Config, cost: Cost, found: Found, alone: Found, at_random: tuple[int, ...], seed: int
) -> dict[str, float]:
    """How near to the best a search came, among all networks of the space.

    Networks are judged on images of the test part, which neither weights nor architecture have seen, each with the weights that
    the search has left behind.

    Args:
        found: of the search for loss and cost. Per cent of networks that are better by the objective: than its own, than that of
            random search, than the cheapest.
        alone: of the search without cost. Per cent of networks of less loss than its own; its loss over the least that any
            network of no higher cost has, and that of the knapsack's choice under this cost.
    """
    order = np.random.default_rng((seed, 6)).permutation(len(task.test[0]))[: config.scored]
    part, costs = (task.test[0][order], task.test[1][order]), every_cost(cost)
    losses, objective = every_loss(found.model, part), Objective(cost.uniform, config.latency_weight, config.form)
    values = np.array([objective(a, b) for a, b in zip(losses.ravel(), costs.ravel(), strict=True)]).reshape(losses.shape)
    cheapest = tuple(int(own.argmin()) for own in cost.of)
    judged = {"searched": found.picks, "random search": at_random, "cheapest": cheapest}
    shares = {name: 100 * float((values < values[picks]).mean()) for name, picks in judged.items()}
    losses, limit = every_loss(alone.model, part), cost.total(alone.picks)
    best = losses[costs <= limit * (1 + 1e-9)].min()
    packed = knapsack(single_effects(losses, alone.picks), cost, limit)
    return shares | {
        "loss alone": 100 * float((losses < losses[alone.picks]).mean()),
        "its loss over the best under its cost": float(losses[alone.picks] - best),
        "the knapsack's over it": float(losses[packed] - best),
    }


@torch.no_grad()
def every_loss(model: SuperNet, part: Part) -> Float64[np.ndarray, " *candidates"]:
    """Loss of every network of the space with the shared weights, an axis for each place.

    Networks that begin alike share their beginning: the places are walked as a tree.
    """
    images, labels = tensors(part)
    x = model.first(model.stem(rearrange(images, "batch height width channel -> batch channel height width")))

    def walk(x: Tensor, place: int) -> Any:
        if place == len(model.places):
            return F.cross_entropy(model.head(model.last(x).mean((2, 3))), labels).item()
        return [walk(operation(x), place + 1) for operation in model.places[place]]

    return np.array(walk(x, 0))


def every_cost(cost: Cost) -> Float64[np.ndarray, " *candidates"]:
    """Cost of every network, in the same order."""
    total = np.array(cost.rest)
    for own in cost.of:
        total = np.add.outer(total, own)
    return total


def single_effects(losses: Float64[np.ndarray, " *candidates"], at: tuple[int, ...]) -> list[Float64[np.ndarray, " _"]]:
    """For each place, what changing it alone does to the loss of the network ``at``."""
    return [losses[(*at[:place], slice(None), *at[place + 1 :])] - losses[at] for place in range(losses.ndim)]


def knapsack(effects: list[np.ndarray], cost: Cost, limit: float) -> tuple[int, ...]:
    """The candidates of least summed effect whose cost stays under the limit: a multiple-choice knapsack, solved exactly.

    Raises:
        ValueError: no network is that cheap.
    """
    model, total, spent = Model(), None, cost.rest
    for place, (effect, own) in enumerate(zip(effects, cost.of, strict=True)):
        taken = model.binaries(f"place {place}", (len(own),))
        model.require("one candidate in every place", taken.sum() == 1)
        value = (taken * effect).sum()
        total, spent = value if total is None else total + value, (taken * own).sum() + spent
    # A rounding error of the sum must not shut out the network that the limit was taken from.
    model.require("the limit", spent <= limit * (1 + 1e-9))
    model.minimise(total)
    solution = model.solve()
    if not solution.values:
        raise ValueError(f"no network costs at most {limit:g} {cost.unit}: {solution}")
    return tuple(int(np.argmax(solution[f"place {place}"])) for place in range(len(effects)))
