"""Runs of an algorithm over generations, in a framework of choice or as the sequential original."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from papers.tensorized_emo.settings import Setting, State

WAYS = {"jax": "JAX", "torch": "PyTorch", "sequential": "loop"}


def generations(setting: Setting, seed: int, number: int, how: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(x, f) of the first population and of those after each generation, float64 NumPy.

    Args:
        how: torch or jax, in float32, which draw their own noise; or sequential, in float64.
    """
    state, advance = begin(setting, seed, how)
    yield _plain(state)
    for _ in range(number):
        state = advance(state)
        yield _plain(state)


def final(setting: Setting, seed: int, number: int, how: str) -> Float[np.ndarray, "n m"]:
    """The objectives after so many generations."""
    state, advance = begin(setting, seed, how)
    for _ in range(number):
        state = advance(state)
    return _plain(state)[1]


def begin(setting: Setting, seed: int, how: str) -> tuple[State, Callable[[State], State]]:
    """The first state, and a function that makes the next generation, its random numbers included."""
    rng = np.random.default_rng(seed)
    first = setting.start(rng)
    if how == "sequential":
        from papers.tensorized_emo import sequential

        one = sequential.step(setting)
        return first, lambda state: one(state, setting.draw(rng))
    if how == "torch":
        import torch

        from papers.tensorized_emo import tensor_torch

        generator, advance = torch.Generator().manual_seed(seed), tensor_torch.step(setting)
        tensors = State(*(torch.from_numpy(each).float() for each in first))
        return tensors, lambda state: advance(state, tensor_torch.draw(setting, generator))
    import jax
    import jax.numpy as jnp

    compiled, keys = _compiled(setting), _keys(jax.random.key(seed))
    arrays = State(*(jnp.asarray(each, jnp.float32) for each in first))
    return arrays, lambda state: jax.block_until_ready(compiled(state, next(keys)))


def _keys(key: Any) -> Iterator[Any]:
    import jax

    while True:
        key, one = jax.random.split(key)
        yield one


@functools.lru_cache(maxsize=16)
def _compiled(setting: Setting) -> Callable[[State, Any], State]:
    """One compiled program for each setting, whatever the seed."""
    from papers.tensorized_emo import tensor_jax

    return tensor_jax.own_noise(setting)


def _plain(state: State) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(state.x, np.float64), np.asarray(state.f, np.float64)
