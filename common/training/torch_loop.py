"""The training loop in PyTorch; its twin is :mod:`common.training.jax_loop`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.models.weights import array_of
from common.training import History, Store


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch_at: Callable[[int], Any],
    optimizer: torch.optim.Optimizer,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    checkpoint: Store | None = None,
    every: int = 50,
    track: Callable[[Iterable[int], str], Iterable[int]] | None = None,
    label: str = "training",
) -> History:
    """Train the model in place.

    Args:
        loss: ``loss(model, batch)``, the scalar to descend.
        batch_at: the batch of a step, a NumPy array or a tuple of them; it comes to ``loss`` as tensors.
        schedule: factor on the optimizer's learning rates at a step.
        checkpoint: state is saved there every ``every`` steps and at the end; a training that was cut short goes on from
            there, and ends as if it had not been, random numbers of the CPU's default generator included. Optimizers whose
            state is tensors and numbers can be saved.
        track: wraps the steps for a progress bar, as :meth:`common.runner.Run.track` does.
    """
    rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    device = next(model.parameters()).device
    losses, seconds = _restore(checkpoint, model, optimizer)
    model.train()
    start = time.perf_counter() - seconds
    left = range(len(losses), steps)
    for step in track(left, label) if track else left:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (schedule(step) if schedule else 1.0)
        value = loss(model, _tensors(batch_at(step), device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        if checkpoint and ((step + 1) % every == 0 or step + 1 == steps):
            _save(checkpoint, model, optimizer, losses, time.perf_counter() - start)
    return History(np.array(losses), time.perf_counter() - start)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor] | None = None) -> float:
    """Mean of the loss over all rows of the batches; by default :func:`next_token_loss`, in nats for each token."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total, rows = 0.0, 0
    for batch in batches:
        count = len(batch[0] if isinstance(batch, tuple) else batch)
        total += (loss or next_token_loss)(model, _tensors(batch, device)).item() * count
        rows += count
    model.train(training)
    return total / rows


def next_token_loss(model: nn.Module, batch: Int[Tensor, "batch length"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of each token but the first, given those before it, in nats."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def adamw(
    model: nn.Module, rate: float, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95), epsilon: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only, not scales and shifts."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=betas, eps=epsilon, fused=True)


def _save(checkpoint: Store, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float], seconds: float) -> None:
    arrays = {f"model.{name}": array_of(tensor) for name, tensor in model.state_dict().items()}
    arrays |= {"losses": np.array(losses), "random": array_of(torch.get_rng_state())}
    numbers: dict[str, float] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            name = f"optimizer.{index}.{key}"
            if isinstance(value, Tensor):
                arrays[name] = array_of(value)
            elif isinstance(value, (int, float)):
                numbers[name] = value
            elif value is not None:
                raise TypeError(f"the optimizer keeps {key!r} as {type(value).__name__}; only tensors and numbers can be saved")
    checkpoint.save(arrays, {"seconds": seconds, "numbers": numbers})


def _restore(checkpoint: Store | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[float], float]:
    saved = checkpoint.load() if checkpoint else None
    if saved is None:
        return [], 0.0
    arrays, meta = saved
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **meta["numbers"]}.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    # Hyperparameters are the caller's; what was saved is what the steps have gathered.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])
    return arrays["losses"].tolist(), meta["seconds"]


def _tensors(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, tuple):
        return tuple(_tensors(each, device) for each in batch)
    return torch.from_numpy(batch).to(device)
