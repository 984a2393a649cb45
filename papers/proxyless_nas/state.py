"""The state of a search as arrays, so that one that was cut short goes on as if it had not been."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from common.models.weights import array_of, from_torch, to_torch
from common.training import Store

if TYPE_CHECKING:
    from papers.proxyless_nas.search import Search

EVERY = 1000
"""Weight steps from one saved state to the next."""

ADAM = ("exp_avg", "exp_avg_sq", "step")


def save(store: Store, search: Search, step: int, rows: list[np.ndarray]) -> None:
    """Weights, momenta, architecture parameters with what Adam has gathered, REINFORCE's baseline, probabilities so far."""
    arrays = {f"weight {name}": array for name, array in from_torch(search.model).items()}
    for name, weight in search.model.named_parameters():
        momentum = search.sgd.state.get(weight, {}).get("momentum_buffer")
        if momentum is not None:
            arrays[f"momentum {name}"] = array_of(momentum)
    for place, alpha in enumerate(search.alphas):
        arrays[f"alpha {place}"] = array_of(alpha)
        for part in ADAM if search.adam.state.get(alpha) else ():
            arrays[f"{part} {place}"] = array_of(search.adam.state[alpha][part])
    arrays["rows"] = np.array(rows)
    store.save(arrays, {"step": step, "baseline": search.reinforce.baseline})


def load(store: Store, search: Search) -> tuple[int, list[np.ndarray]]:
    """Steps done and probabilities so far, with the state put into the search; (0, []) where nothing is stored."""
    found = store.load()
    if found is None:
        return 0, []
    arrays, note = found
    to_torch(search.model, {name.removeprefix("weight "): each for name, each in arrays.items() if name.startswith("weight ")})
    for name, weight in search.model.named_parameters():
        if f"momentum {name}" in arrays:
            momentum = torch.from_numpy(np.array(arrays[f"momentum {name}"])).to(weight.device, weight.dtype)
            search.sgd.state[weight] = {"momentum_buffer": momentum}
    with torch.no_grad():
        for place, alpha in enumerate(search.alphas):
            alpha.copy_(torch.from_numpy(np.array(arrays[f"alpha {place}"])))
            if f"step {place}" in arrays:
                search.adam.state[alpha] = {part: torch.from_numpy(np.array(arrays[f"{part} {place}"])) for part in ADAM}
    search.reinforce.baseline = note["baseline"]
    return int(note["step"]), list(arrays["rows"])
