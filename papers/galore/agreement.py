"""Trajectories on the same gradients: this room against the published package, and PyTorch against JAX."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from common.agreement import relative_error
from common.ledger import NotRun, Value

SHAPES = ((24, 40), (40, 24), (16, 16))
"""Wide, tall and square: the three cases of the side."""
RANK, GAP, STEPS, RATE, DECAY = 6, 4, 13, 1e-2, 0.1
"""Thirteen steps see three refreshes after the first decomposition."""

Weights = list[np.ndarray]


def drawn(seed: int, dtype: Any) -> tuple[Weights, list[Weights]]:
    """Weights and gradients. Adam divides by the root of a square, which for a tiny entry is mostly rounding, so gradients
    have a common part that keeps moments away from zero."""
    rng = np.random.default_rng(seed)
    common = [rng.standard_normal(shape) for shape in SHAPES]
    weights = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    return weights, [[(c + 0.5 * rng.standard_normal(c.shape)).astype(dtype) for c in common] for _ in range(STEPS)]


def by_torch(make: Callable[[list[Any]], Any], weights: Weights, gradients: list[Weights], forget: bool = False) -> Weights:
    """Where an optimizer takes the weights; ``forget`` resets its moments at each refresh, a fault."""
    import torch
    from torch import nn

    parameters = [nn.Parameter(torch.from_numpy(each.copy())) for each in weights]
    optimizer = make(parameters)
    for step, each in enumerate(gradients):
        if forget and step % GAP == 0:
            for state in optimizer.state.values():
                state["mean"].zero_(), state["square"].zero_()
        for parameter, gradient in zip(parameters, each, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return [each.detach().numpy() for each in parameters]


def by_jax(optimizer: Any, weights: Weights, gradients: list[Weights]) -> Weights:
    """The same for an optax transformation, in the dtype of the weights."""
    import jax
    import jax.numpy as jnp
    import optax

    with jax.enable_x64(weights[0].dtype == np.float64):
        parameters = [jnp.asarray(each) for each in weights]
        state = optimizer.init(parameters)

        @jax.jit
        def update(parameters: Any, state: Any, gradients: Any) -> Any:
            updates, state = optimizer.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        for each in gradients:
            parameters, state = update(parameters, state, [jnp.asarray(g) for g in each])
        return [np.asarray(each) for each in parameters]


def published(seed: int, forget: bool = False) -> Value:
    """Largest relative difference of any weight from galore-torch's AdamW, in float32."""
    from papers.galore.optimizer_torch import GaLoreAdamW

    if importlib.util.find_spec("galore_torch") is None:
        return NotRun.without("galore-torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from galore_torch import GaLoreAdamW as Published

    def ours(parameters: list[Any]) -> Any:
        # The published code leaves the signs of the decomposition as they come.
        group = {"params": parameters, "rank": RANK, "gap": GAP, "scale": 0.25, "signs": "library"}
        return GaLoreAdamW([group], lr=RATE, weight_decay=DECAY)

    def theirs(parameters: list[Any]) -> Any:
        group = {"params": parameters, "rank": RANK, "update_proj_gap": GAP, "scale": 0.25, "proj_type": "std"}
        return Published([group], lr=RATE, weight_decay=DECAY, no_deprecation_warning=True)

    weights, gradients = drawn(seed, np.float32)
    return _apart(by_torch(ours, weights, gradients, forget), by_torch(theirs, weights, gradients))


def frameworks(seed: int, method: str = "svd", forget: bool = False) -> float:
    """Largest relative difference of any weight between PyTorch and JAX, in float64."""
    from papers.galore import optimizer_jax
    from papers.galore.optimizer_torch import GaLoreAdamW

    def ours(parameters: list[Any]) -> Any:
        group = {"params": parameters, "rank": RANK, "gap": GAP, "scale": 0.25, "method": method}
        return GaLoreAdamW([group], lr=RATE, weight_decay=DECAY)

    twin = optimizer_jax.adamw(RATE, RANK, GAP, 0.25, weight_decay=DECAY, method=method, projected=lambda path, leaf: True)
    weights, gradients = drawn(seed, np.float64)
    return _apart(by_torch(ours, weights, gradients, forget), by_jax(twin, weights, gradients))


def _apart(got: Weights, want: Weights) -> float:
    return max(relative_error(a, b) for a, b in zip(got, want, strict=True))
