"""The same short search in PyTorch and JAX: weights, logits and noise are given, the updates are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.agreement import relative_error
from papers.fbnet.space import CODES, Space
from papers.fbnet.supernet import gumbel, initial_weights, tau_at

SPACE = Space(size=4, classes=3, stages=((4, 1, 1),), stem=4, last=5, channels=2, stem_stride=1)
"""One layer of nine candidates, so that compilation is short; skip is the identity."""
EPOCHS, STEPS, BATCH = 2, 2, 6
RATE, DECAY, THETA_RATE, THETA_DECAY = 0.1, 1e-4, 0.05, 5e-4
ALPHA, BETA, TAU, FALL, REST = 0.2, 0.6, 5.0, 0.3, 2.0

Trajectory = dict[str, np.ndarray]


def drawn(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    steps = 2 * EPOCHS * STEPS
    return {
        "images": rng.standard_normal((steps, BATCH, SPACE.size, SPACE.size, SPACE.channels)),
        "labels": rng.integers(SPACE.classes, size=(steps, BATCH)),
        "noise": gumbel((steps, len(SPACE.places), len(CODES)), rng),
        "table": rng.uniform(0.1, 3.0, (len(SPACE.places), len(CODES))),
    }


def plan() -> list[tuple[float, bool]]:
    """Temperature of each step, and whether it trains the logits: weights first in every epoch."""
    return [(tau_at(epoch, TAU, FALL), logits) for epoch in range(EPOCHS) for logits in (False, True) for _ in range(STEPS)]


def by_torch(seed: int) -> Trajectory:
    import torch
    import torch.nn.functional as F

    from common.models.weights import from_torch
    from papers.fbnet.model_torch import StochasticSuperNet, gumbel_softmax, latency_of, loss_of

    given = {name: torch.from_numpy(each) for name, each in drawn(seed).items()}
    net = StochasticSuperNet(SPACE, seed, dtype=torch.float64).train()
    sgd = torch.optim.SGD(net.weights(), RATE, momentum=0.9, weight_decay=DECAY)
    adam = torch.optim.Adam([net.theta], THETA_RATE, weight_decay=THETA_DECAY)
    losses = []
    for step, (tau, logits) in enumerate(plan()):
        masks = gumbel_softmax(net.theta, tau, noise=given["noise"][step])
        cross_entropy = F.cross_entropy(net(given["images"][step], masks), given["labels"][step])
        loss = loss_of(cross_entropy, latency_of(masks, given["table"], REST), ALPHA, BETA)
        net.zero_grad()
        loss.backward()
        (adam if logits else sgd).step()
        losses.append(loss.item())
    trained = {name: each for name, each in from_torch(net).items() if not name.endswith(("running_mean", "running_var"))}
    return trained | {"losses": np.array(losses)}


def by_jax(seed: int, bits: int = 64) -> Trajectory:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from common.models.weights import from_flax
    from papers.fbnet.model_jax import StochasticSuperNet, gumbel_softmax, latency_of, loss_of

    dtype = np.dtype(f"float{bits}")
    with jax.enable_x64(bits == 64):
        given = {n: jnp.asarray(a if n == "labels" else a.astype(dtype)) for n, a in drawn(seed).items()}
        net = StochasticSuperNet(SPACE, seed, dtype)
        net.train()
        whole: Any = nnx.split(net, nnx.PathContains("theta"), nnx.Param, ...)  # type: ignore[misc]
        graph, *parts, rest = whole

        @jax.jit
        def gradients(parts: Any, rest: Any, images: Any, labels: Any, noise: Any, tau: Any) -> Any:
            def objective(parts: Any) -> Any:
                net = nnx.merge(graph, *parts, rest, copy=True)
                masks = gumbel_softmax(net.theta[...], tau, noise=noise)
                cross_entropy = optax.softmax_cross_entropy_with_integer_labels(net(images, masks), labels).mean()
                return loss_of(cross_entropy, latency_of(masks, given["table"], REST), ALPHA, BETA)

            return jax.value_and_grad(objective)(parts)

        adam = optax.chain(optax.add_decayed_weights(THETA_DECAY), optax.adam(THETA_RATE))
        sgd = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=0.9))
        states: list[Any] = [adam.init(parts[0]), sgd.init(parts[1])]
        turns, losses = [updated(adam), updated(sgd)], []
        for step, (tau, logits) in enumerate(plan()):
            which = 0 if logits else 1
            images, labels, noise = (given[name][step] for name in ("images", "labels", "noise"))
            loss, slopes = gradients(parts, rest, images, labels, noise, jnp.asarray(tau, dtype))
            parts[which], states[which] = turns[which](parts[which], states[which], slopes[which])
            losses.append(float(loss))
        nnx.update(net, *parts)
        trained = {n: each for n, each in from_flax(net).items() if not n.endswith(("running_mean", "running_var"))}
        return trained | {"losses": np.array(losses)}


def updated(rule: Any) -> Any:
    """One compiled update of parameters by an optax rule."""
    import jax
    import optax

    @jax.jit
    def update(part: Any, state: Any, slopes: Any) -> Any:
        updates, state = rule.update(slopes, state, part)
        return optax.apply_updates(part, updates), state

    return update


def apart(seed: int, bits: int = 64) -> dict[str, float]:
    """Largest relative differences of losses, of logits and of what the weights changed by, after all steps."""
    got, want = by_jax(seed, bits), by_torch(seed)
    if set(got) != set(want):
        raise AssertionError(f"the twins' parameters differ by name: {sorted(set(got) ^ set(want))[:3]}")
    start = initial_weights(SPACE, seed)
    # A shift before another norm changes nothing, and its gradient is rounding: changes of weights are compared all together.
    names = sorted(name for name in start if name in want and name != "theta")
    mine, theirs = (np.concatenate([(each[n] - start[n]).ravel() for n in names]) for each in (got, want))
    return {
        "losses": relative_error(got["losses"], want["losses"]),
        "logits": relative_error(got["theta"], want["theta"]),
        "weights": relative_error(mine, theirs),
    }
