"""Two small robots whose controllers are searched for: the genes are the weights of a network, the objectives come from an
episode. One text for PyTorch and JAX; the whole population moves at once.

A two-link arm reaches for four targets, or a mass is pushed to the origin, with small errors and small forces. They stand in
for the paper's Brax robots, whose physics needs a package that this repository does not install.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float

from common.ops import framework
from papers.tensorized_emo.problems import Problem

HIDDEN = 8
BOUND = 3.0
"""Weights lie within this of zero."""

CORNER = np.array([1.5, 1.0])
"""The point up to which a hypervolume counts: an error of 1.5, and the largest force all the time."""

STEP = 0.05
"""Seconds of one step."""

TARGETS = np.array([[1.2, 0.9], [0.2, 1.5], [-1.1, 0.8], [0.6, -1.3]])
STARTS = np.array([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.8], [-0.3, -1.0]])
"""Where the tip of the arm shall go, in link lengths; where the mass starts, with its velocity."""


def robot(name: str, steps: int) -> Problem:
    """The search for a controller of ``steps`` steps: mean error and mean squared force, both minimised."""
    if name not in _ROBOTS:
        raise ValueError(f"there is no robot {name!r}; there are {', '.join(_ROBOTS)}")
    if steps < 1:
        raise ValueError(f"an episode of {steps} steps; wanted at least 1")
    actions = _ROBOTS[name][3]
    d = 3 * HIDDEN + (HIDDEN + 1) * actions
    return Problem(name, lambda x: episode(name, x, steps)[0], np.full(d, -BOUND), np.full(d, BOUND), 2)


def episode(name: str, weights: Float[Any, "n d"], steps: int) -> tuple[Float[Any, "n 2"], Float[Any, "n 4"]]:
    """Objectives of each policy, and its behaviour: mean and spread of the first state variable, of the force, and the final
    error, each averaged over the starts."""
    xp = array_namespace(weights)
    begin, move, error, actions = _ROBOTS[name]
    policy = _policy(xp, weights, actions)
    state = begin(xp, weights)

    def one(carry: Any, _: Any) -> Any:
        state, sums = carry
        force = policy(error(xp, state)[1])
        state = move(xp, state, force)
        distance = error(xp, state)[0]
        effort = (force**2).mean(axis=-1)
        seen = (distance, effort, state[0], state[0] ** 2, force[..., 0])
        return (state, tuple(a + b for a, b in zip(sums, seen, strict=True))), None

    zero = xp.zeros_like(state[0])
    carry = (state, (zero, zero, zero, zero, zero))
    if framework(weights) == "jax":
        from jax import lax

        carry = lax.scan(one, carry, None, length=steps)[0]
    else:
        for _ in range(steps):
            carry = one(carry, None)[0]
    state, sums = carry
    distance, effort, place, square, force = (each / steps for each in sums)
    spread = xp.sqrt(xp.maximum(square - place**2, xp.zeros_like(place)))
    behaviour = (place, spread, force, error(xp, state)[0])
    return (
        xp.stack([distance.mean(axis=1), effort.mean(axis=1)], axis=1),
        xp.stack([each.mean(axis=1) for each in behaviour], axis=1),
    )


def distinct(behaviour: Float[np.ndarray, "n b"], apart: float = 0.05) -> int:
    """How many policies behave differently: taken greedily, each at least ``apart`` from all taken before."""
    taken: list[np.ndarray] = []
    for each in behaviour:
        if all(np.linalg.norm(each - other) >= apart for other in taken):
            taken.append(each)
    return len(taken)


def _policy(xp: Any, weights: Any, actions: int) -> Callable[[Any], Any]:
    """tanh(W2 tanh(W1 o + b1) + b2) for each individual's own weights; o is (n, starts, 2)."""
    n = weights.shape[0]
    first = xp.reshape(weights[:, : 2 * HIDDEN], (n, 2, HIDDEN))
    bias = weights[:, None, 2 * HIDDEN : 3 * HIDDEN]
    second = xp.reshape(weights[:, 3 * HIDDEN : (3 + actions) * HIDDEN], (n, HIDDEN, actions))
    last = weights[:, None, (3 + actions) * HIDDEN :]
    return lambda o: xp.tanh(xp.tanh(o @ first + bias) @ second + last)


def _constant(xp: Any, like: Any, value: np.ndarray) -> Any:
    """The column of a table of starts, the same for each individual: (n, starts)."""
    return xp.stack([xp.full_like(like[:, 0], float(each)) for each in value], axis=1)


def _arm_begin(xp: Any, weights: Any) -> tuple[Any, ...]:
    """Angles and velocities of both links, at rest and a little bent."""
    bent = _constant(xp, weights, np.full(len(TARGETS), 0.3))
    return bent, bent, xp.zeros_like(bent), xp.zeros_like(bent)


def _arm_move(xp: Any, state: tuple[Any, ...], force: Any) -> tuple[Any, ...]:
    """M(q) q'' + c(q, q') = torque - damping q' for two rods of mass and length 1, without gravity; semi-implicit Euler."""
    a, b, va, vb = state
    cosine, sine = xp.cos(b), xp.sin(b)
    m11, m12, m22 = 5 / 3 + cosine, 1 / 3 + cosine / 2, 1 / 3
    right_a = 2 * force[..., 0] - va + sine * (va * vb + vb**2 / 2)
    right_b = 2 * force[..., 1] - vb - sine * va**2 / 2
    determinant = m11 * m22 - m12**2
    va = va + STEP * (m22 * right_a - m12 * right_b) / determinant
    vb = vb + STEP * (m11 * right_b - m12 * right_a) / determinant
    return a + STEP * va, b + STEP * vb, va, vb


def _arm_error(xp: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
    a, b = state[:2]
    x = xp.cos(a) + xp.cos(a + b) - _constant(xp, a, TARGETS[:, 0])
    y = xp.sin(a) + xp.sin(a + b) - _constant(xp, a, TARGETS[:, 1])
    # The policy sees the error in the frame of the first link, and nothing of its velocity: damping is the arm's own.
    own = xp.stack([xp.cos(a) * x + xp.sin(a) * y, xp.cos(a) * y - xp.sin(a) * x], axis=-1)
    return xp.sqrt(x**2 + y**2 + 1e-12), own


def _mass_begin(xp: Any, weights: Any) -> tuple[Any, ...]:
    return _constant(xp, weights, STARTS[:, 0]), _constant(xp, weights, STARTS[:, 1])


def _mass_move(xp: Any, state: tuple[Any, ...], force: Any) -> tuple[Any, ...]:
    place, velocity = state
    velocity = velocity + STEP * 2 * force[..., 0]
    return place + STEP * velocity, velocity


def _mass_error(xp: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
    return xp.abs(state[0]), xp.stack(list(state), axis=-1)


_ROBOTS: dict[str, tuple[Any, Any, Any, int]] = {
    "reacher": (_arm_begin, _arm_move, _arm_error, 2),
    "integrator": (_mass_begin, _mass_move, _mass_error, 1),
}
"""By name: first state, movement, (error, observation), number of forces."""
