"""The training loop in JAX (flax.nnx, optax); its twin is :mod:`common.training.torch_loop`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from common.training import History, Store


def train(
    model: nnx.Module,
    loss: Callable[[Any, Any], Array],
    batch_at: Callable[[int], Any],
    optimizer: optax.GradientTransformation,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    checkpoint: Store | None = None,
    every: int = 50,
    track: Callable[[Iterable[int], str], Iterable[int]] | None = None,
    label: str = "training",
) -> History:
    """Train the model in place; each step is one compiled function.

    Args:
        loss: ``loss(model, batch)``, the scalar to descend.
        batch_at: the batch of a step, a NumPy array or a tuple of them.
        schedule: factor on the optimizer's updates, and so on its learning rate, at a step.
        checkpoint: state is saved there every ``every`` steps and at the end; a training that was cut short goes on from
            there, and ends as if it had not been, random numbers of the model's own ``nnx.Rngs`` included.
        track: wraps the steps for a progress bar, as :meth:`common.runner.Run.track` does.
    """
    model.train()
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    @jax.jit
    def update(state: _State, batch: Any, factor: Any) -> tuple[_State, Array]:
        def objective(parameters: Any) -> tuple[Array, Any]:
            model = nnx.merge(graph, parameters, state.rest, copy=True)
            # What a forward pass may change, such as running statistics, is carried on.
            return loss(model, batch), nnx.state(model, nnx.Not(nnx.Param))

        (value, rest), gradients = jax.value_and_grad(objective, has_aux=True)(state.model)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.model)
        parameters = optax.apply_updates(state.model, jax.tree.map(lambda each: each * factor, updates))
        return _State(parameters, rest, optimizer_state), value

    state, losses, seconds = _restore(checkpoint, _State(parameters, rest, optimizer.init(parameters)))
    start = time.perf_counter() - seconds
    left = range(len(losses), steps)
    for step in track(left, label) if track else left:
        state, value = update(state, batch_at(step), schedule(step) if schedule else 1.0)
        losses.append(float(value))
        if checkpoint and ((step + 1) % every == 0 or step + 1 == steps):
            arrays = _flat(state) | {"losses": np.array(losses)}
            checkpoint.save(arrays, {"seconds": time.perf_counter() - start})
    nnx.update(model, state.model, state.rest)
    return History(np.array(losses), time.perf_counter() - start)


def evaluate(model: nnx.Module, batches: Iterable[Any], loss: Callable[[Any, Any], Array] | None = None) -> float:
    """Mean of the loss over all rows of the batches; by default :func:`next_token_loss`, in nats for each token."""
    # The twin shares the arrays but has its own mode, so the model's stays as it was.
    twin = nnx.merge(*nnx.split(model))
    twin.eval()
    graph, state = nnx.split(twin)
    value = jax.jit(lambda state, batch: (loss or next_token_loss)(nnx.merge(graph, state), batch))
    total, rows = 0.0, 0
    for batch in batches:
        count = len(batch[0] if isinstance(batch, tuple) else batch)
        total += float(value(state, batch)) * count
        rows += count
    return total / rows


def next_token_loss(model: Any, batch: Int[Array, "batch length"]) -> Float[Array, ""]:
    """Mean cross-entropy of each token but the first, given those before it, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]).mean()


def adamw(
    rate: float, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95), epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only, not scales and shifts."""

    def matrices(parameters: Any) -> Any:
        return jax.tree.map(lambda each: each.ndim >= 2, parameters)

    return optax.adamw(rate, *betas, eps=epsilon, weight_decay=weight_decay, mask=matrices)


class _State(NamedTuple):
    """What a step changes: the parameters, the other variables of the model, the optimizer's state."""

    model: Any
    rest: Any
    optimizer: Any


def _flat(state: _State) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _restore(checkpoint: Store | None, state: _State) -> tuple[_State, list[float], float]:
    saved = checkpoint.load() if checkpoint else None
    if saved is None:
        return state, [], 0.0
    arrays, meta = saved

    def leaf(path: Any, fresh: Array) -> Array:
        array = arrays[jax.tree_util.keystr(path)]
        if _is_key(fresh):
            return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(fresh))
        return jnp.asarray(array, fresh.dtype)

    return jax.tree.map_with_path(leaf, state), arrays["losses"].tolist(), meta["seconds"]
