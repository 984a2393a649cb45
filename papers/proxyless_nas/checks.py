"""Exactness: modes against each other, PyTorch against JAX, estimators against enumeration; all in float64."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.agreement import relative_error
from common.models.weights import from_flax, from_torch
from common.nas import network_torch
from papers.proxyless_nas import cost, space
from papers.proxyless_nas.gates import Gates, Reinforce, rescale, sample, softmax
from papers.proxyless_nas.mixed_torch import mixed_op
from papers.proxyless_nas.objective import Objective
from papers.proxyless_nas.search import Search, begin
from papers.proxyless_nas.space import SEVEN, Place, Space
from papers.proxyless_nas.supernet_torch import SuperNet

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For XLA: seven steps of a tiny network are not worth an optimised program."""


def same_gradient(seed: int, mechanism: bool = True) -> dict[str, float]:
    """Largest relative difference of mode full_v2 against "every": output, gradients of input, weights and alpha."""
    return {"torch": _same_torch(seed, mechanism), "jax": _same_jax(seed)}


def _same_torch(seed: int, mechanism: bool) -> float:
    rng = np.random.default_rng(seed)
    place = Place(inputs=4, outputs=4, stride=1, candidates=SEVEN)
    torch.manual_seed(seed)
    modules = [network_torch.build(place.layer(c), dtype=torch.float64).train() for c in place.candidates]
    x, dy = (torch.from_numpy(rng.normal(size=(3, 4, 6, 6))) for _ in range(2))
    alpha = torch.from_numpy(rng.normal(size=len(modules)))
    worst = 0.0
    for active in (0, 3):
        gates = Gates(active, tuple(range(len(modules))))
        found = {mode: _gradients(mode, x, alpha, modules, gates, dy, mechanism) for mode in ("every", "full", "full_v2")}
        for mode in ("full", "full_v2"):
            worst = max(worst, *(relative_error(a, b) for a, b in zip(found[mode], found["every"], strict=True)))
    return worst


def _gradients(mode: str, x: Tensor, alpha: Tensor, modules: list[Any], gates: Gates, dy: Tensor, sees: bool) -> list[np.ndarray]:
    x, alpha = x.clone().requires_grad_(), alpha.clone().requires_grad_()
    y = mixed_op(x, alpha, modules, gates, mode, sees_inactive=sees)
    weights = list(modules[gates.active].parameters())
    return [each.detach().numpy() for each in (y, *torch.autograd.grad(y, [x, alpha, *weights], dy))]


def _same_jax(seed: int) -> float:
    """Seven candidates without norms, which cost a compiler little; claim ``twin`` has those of the space."""
    import jax
    import jax.numpy as jnp

    from papers.proxyless_nas import mixed_jax

    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        weights = [jnp.asarray(each) for each in rng.normal(size=(7, 4, 4))]
        functions = [lambda w, x, k=k: jnp.tanh(x @ w) ** (1 + k % 2) for k in range(7)]
        x, dy = (jnp.asarray(each) for each in rng.normal(size=(2, 5, 4)))
        alpha, involved = jnp.asarray(rng.normal(size=7)), jnp.ones(7, bool)

        @functools.partial(jax.jit, compiler_options=QUICK)
        def both(active: Any) -> Any:
            found = []
            for mode in ("every", "full_v2"):
                run = functools.partial(mixed_jax.mixed_op, operations=functions, active=active, involved=involved, mode=mode)
                y, pull = jax.vjp(lambda x, a, w, run=run: run(x, a, weights=w), x, alpha, weights)
                found.append((y, pull(dy)))
            return found

        worst = 0.0
        for active in (1, 4):
            every, one = both(active)
            worst = max(worst, *map(relative_error, jax.tree.leaves(one), jax.tree.leaves(every)))
        return worst


def tiny(places: int = 2) -> Space:
    """One or two places, the first with Zero."""
    return space.build(
        channels=2, size=8, classes=3, fixed=(4, 4, 6), widths=(4, 6)[:places], cells=(1, 1)[:places], strides=(1, 2)[:places],
        candidates=SEVEN[:4:2],
    )  # fmt: skip


def frameworks(seed: int, mechanism: bool = True) -> dict[str, Any]:
    """Claims ``twin`` and ``untouched``: one trajectory in both frameworks from the same weights with the same gates.

    Every weight step is watched: which numbers of inactive candidates, weights or momenta, has it changed?
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from papers.proxyless_nas import steps_jax, supernet_jax

    where, rng = tiny(1), np.random.default_rng(seed)
    price = cost.macs(where)
    objective = Objective(price.uniform, 0.1)
    alphas = begin(where, rng)
    starts = [alpha.detach().numpy().copy() for alpha in alphas]
    mine = Search(SuperNet(where, seed, dtype=torch.float64), price, objective, alphas, 0.05, clears=mechanism)
    moved = {"torch": 0, "jax": 0}
    with jax.enable_x64(True):
        theirs = steps_jax.Search(
            supernet_jax.SuperNet(where, seed, None, jnp.float64), where, starts, objective, price, 0.05, mechanism, QUICK
        )
        for step, mode in enumerate(("path", "full_v2", "path", "full_v2", "path")):
            images, labels = rng.normal(size=(6, 8, 8, 2)), rng.integers(3, size=6)
            gates = [sample(alpha.detach().numpy(), mode, rng) for alpha in alphas]
            tensors = torch.from_numpy(images), torch.from_numpy(labels)
            if mode != "path":
                mine.architecture_step(*tensors, gates, mode)
                theirs.architecture_step(images, labels, gates, mode)
                continue
            # Candidate 0 runs first and never again: its momentum must rest.
            gates = [Gates(0 if step == 0 else 1, gates[0].involved)]
            before = _inactive_torch(mine, gates), _inactive_jax(theirs, gates)
            mine.weight_step(*tensors, gates, 0.02)
            theirs.weight_step(images, labels, gates, 0.02)
            moved["torch"] += int((before[0] != _inactive_torch(mine, gates)).sum())
            moved["jax"] += int((before[1] != _inactive_jax(theirs, gates)).sum())
        got = from_flax(nnx.merge(theirs.graph, theirs.weights, theirs.rest))
        others = np.concatenate([np.asarray(each.alpha) for each in theirs.adam])
    want = from_torch(mine.model)
    names = [name for name in sorted(want) if "running" not in name]
    weights = relative_error(*(np.concatenate([tree[name].ravel() for name in names]) for tree in (got, want)))
    parameters = relative_error(others, np.concatenate([alpha.detach().numpy() for alpha in alphas]))
    return {"twin": max(weights, parameters), "untouched": moved}


def _inactive_torch(search: Search, gates: list[Gates]) -> np.ndarray:
    found = [np.zeros(0)]
    for modules, gate in zip(search.model.places, gates, strict=True):
        for j, module in enumerate(modules):
            if j != gate.active:
                for weight in module.parameters():
                    momentum = search.sgd.state.get(weight, {}).get("momentum_buffer")
                    still = torch.zeros_like(weight) if momentum is None else momentum
                    found += [weight.detach().numpy().ravel().copy(), still.numpy().ravel().copy()]
    return np.concatenate(found)


def _inactive_jax(search: Any, gates: list[Gates]) -> np.ndarray:
    from flax import nnx

    found = [np.zeros(0)]
    for tree in (search.weights, search.momenta):
        for path, leaf in nnx.to_flat_state(tree):
            if path[0] == "places" and gates[int(path[1])].active != int(path[2]):
                found.append(np.asarray(leaf[...]).ravel())
    return np.concatenate(found)


def estimator(seed: int, mechanism: bool = True) -> dict[str, float]:
    """Expectations over all gates against gradients of the enumerated expected loss or reward."""
    return {"binary gates": _binary_gates(seed, mechanism), "REINFORCE": _reinforce(seed)}


def _binary_gates(seed: int, mechanism: bool) -> float:
    """Three candidates and a linear loss <w, m(x)>: the expected loss is sum_j p_j <w, o_j(x)>."""
    rng = np.random.default_rng(seed)
    matrices = torch.from_numpy(rng.normal(size=(3, 5, 5)))
    x, w = torch.from_numpy(rng.normal(size=(4, 5))), torch.from_numpy(rng.normal(size=(4, 5)))
    operations = [lambda x, matrix=matrix: torch.tanh(x @ matrix) for matrix in matrices]
    start = torch.from_numpy(rng.normal(size=3))
    alpha = start.clone().requires_grad_()
    expected = torch.softmax(alpha, 0) @ torch.stack([(w * operation(x)).sum() for operation in operations])
    want = torch.autograd.grad(expected, alpha)[0].numpy()
    got = np.zeros(3)
    for active, p in enumerate(softmax(start.numpy())):
        alpha = start.clone().requires_grad_()
        m = mixed_op(x, alpha, operations, Gates(active, (0, 1, 2)), "full_v2", sees_inactive=mechanism)
        got += p * torch.autograd.grad((w * m).sum(), alpha)[0].numpy()
    return relative_error(got, want)


def _reinforce(seed: int) -> float:
    """Two places, any reward of the six networks, any fixed baseline."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(3, 2))
    alphas = [rng.normal(size=3), rng.normal(size=2)]
    tensors = [torch.from_numpy(alpha).requires_grad_() for alpha in alphas]
    expected = torch.softmax(tensors[0], 0) @ torch.from_numpy(rewards) @ torch.softmax(tensors[1], 0)
    want = np.concatenate([each.numpy() for each in torch.autograd.grad(-expected, tensors)])
    got = np.zeros(5)
    for picks in itertools.product(range(3), range(2)):
        p = softmax(alphas[0])[picks[0]] * softmax(alphas[1])[picks[1]]
        step = Reinforce(decay=0.0, baseline=0.7)
        got += p * np.concatenate(step.gradients(alphas, np.array([picks]), rewards[picks][None]))
    return relative_error(got, want)


def two_path(seed: int, mechanism: bool = True) -> float:
    """Largest change of an unsampled probability over 200 random steps."""
    rng, worst = np.random.default_rng(seed), 0.0
    for _ in range(200):
        alpha = rng.normal(scale=2.0, size=rng.integers(3, 9))
        gates = sample(alpha, "two", rng)
        after = alpha.copy()
        after[list(gates.involved)] += rng.normal(size=2)
        after = rescale(alpha, after, gates) if mechanism else after
        others = np.delete(softmax(after) - softmax(alpha), list(gates.involved))
        worst = max(worst, float(np.abs(others).max()))
    return worst
