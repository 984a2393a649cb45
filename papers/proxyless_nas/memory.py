"""Bytes that differentiation keeps, counted exactly: by hooks in PyTorch, in JAX by what a vector-Jacobian product holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common.allocations import Saved
from common.nas.network_torch import Network
from papers.proxyless_nas import search, space
from papers.proxyless_nas.gates import Gates, sample
from papers.proxyless_nas.space import SEVEN, Candidate, Space

BATCH, DRAWS = 8, 4


def place_of(candidates: Sequence[Candidate], size: int = 16, cells: int = 3) -> Space:
    """A space of so many places that all have these candidates."""
    return space.build(
        channels=3,
        size=size,
        classes=8,
        fixed=(8, 12, 24),
        widths=(12,),
        cells=(cells,),
        strides=(1,),
        candidates=candidates,
        zero=False,
    )


def by_mode(seed: int) -> dict[str, float]:
    """Bytes of an architecture step over those of training the sampled networks alone, seven candidates in every place."""
    where, rng = place_of(SEVEN), np.random.default_rng(seed)
    total = dict.fromkeys(("alone", "every", "full", "full_v2", "two"), 0)
    for _ in range(DRAWS):
        pair = [sample(np.zeros(len(place.candidates)), "two", rng) for place in where.places]
        all_of = [Gates(gates.active, tuple(range(len(SEVEN)))) for gates in pair]
        total["alone"] += alone(where, [gates.active for gates in pair])
        for mode in ("every", "full", "full_v2"):
            total[mode] += step(where, all_of, mode)
        total["two"] += step(where, pair, "two")
    ratios = {mode: count / total["alone"] for mode, count in total.items() if mode != "alone"}
    return {
        "every path": ratios["every"], "full": ratios["full"], "full_v2": ratios["full_v2"], "two": ratios["two"],
        "full_v2 over every path": ratios["full_v2"] / ratios["every"],
    }  # fmt: skip


def by_number(mode: str) -> list[int]:
    """Bytes of an architecture step in that mode with one to seven candidates in every place, the first of them active."""
    found = []
    for count in range(1, len(SEVEN) + 1):
        where = place_of(SEVEN[:count])
        found.append(step(where, [Gates(0, tuple(range(count)))] * len(where.places), mode))
    return found


def straightness(values: Sequence[float]) -> float:
    """R squared of the line through values at 1, 2, 3 ..."""
    return float(np.corrcoef(np.arange(len(values)), values)[0, 1] ** 2)


def step(where: Space, gates: Sequence[Gates], mode: str) -> int:
    """Bytes kept by the forward pass of an architecture step, weights excluded."""
    from papers.proxyless_nas.supernet_torch import SuperNet

    model = SuperNet(where, 0, search.depthwise).train()
    alphas = search.begin(where, np.random.default_rng(0))
    return _kept(model, lambda images: model(images, gates, alphas, mode), where)


def alone(where: Space, picks: Sequence[int]) -> int:
    """The same of a training step of an ordinary network."""
    model = Network(where.network(search.chosen(where, picks)), 0, search.depthwise).train()
    return _kept(model, model, where)


def _kept(model: torch.nn.Module, forward: Callable[[Any], Any], where: Space) -> int:
    images = torch.zeros(BATCH, where.size, where.size, where.stem.inputs)
    with Saved(*model.parameters(), images) as saved:
        F.cross_entropy(forward(images), torch.zeros(BATCH, dtype=torch.long))
    return saved.bytes


def by_mode_jax() -> dict[str, float]:
    """As :func:`by_mode`, in JAX, by a batch so large that weights are nothing beside it; shapes alone are traced."""
    # The mean of the sampled network over all draws. What is kept of images does not depend on the kernel: one of each expansion.
    expansions = [candidate.expand for candidate in SEVEN]
    single = sum(alone_jax(expand) * expansions.count(expand) for expand in set(expansions)) / len(SEVEN)
    return {"every path": step_jax("every") / single, "full_v2": step_jax("full_v2") / single}


def alone_jax(expand: int) -> int:
    """Bytes of a training step of an ordinary network whose one place has this expansion."""
    from flax import nnx

    from common.nas import network_jax

    net = _place().network([next(candidate for candidate in SEVEN if candidate.expand == expand)])
    graph, state = _training(nnx.eval_shape(lambda: network_jax.Network(net, None)))
    return _kept_jax(lambda state, images: nnx.merge(graph, state)(images), state)


def step_jax(mode: str) -> int:
    """Bytes of an architecture step; mode "switch" is a ``lax.switch`` whose derivative is left to JAX."""
    import jax.numpy as jnp
    from flax import nnx

    from papers.proxyless_nas import mixed_jax, supernet_jax

    graph, state = _training(nnx.eval_shape(lambda: supernet_jax.SuperNet(_place(), None)))
    active, involved = jnp.zeros(1, int), [jnp.ones(len(SEVEN), bool)]

    def forward(both: Any, images: Any) -> Any:
        model = nnx.merge(graph, both[0])
        if mode != "switch":
            return model(images, active, involved, both[1], mode)
        functions, weights = zip(*map(supernet_jax.functional, model.places[0]), strict=True)
        x = mixed_jax.switch(functions, model.first(model.stem(images)), weights, active[0])
        return model.head(model.last(x).mean((1, 2)))

    return _kept_jax(forward, (state, [jnp.zeros(len(SEVEN))]))


def _place() -> Space:
    return place_of(SEVEN, size=8, cells=1)


def _training(model: Any) -> tuple[Any, Any]:
    from flax import nnx

    model.train()
    return nnx.split(model)


def _kept_jax(function: Callable[..., Any], state: Any) -> int:
    import jax
    import jax.numpy as jnp

    from common.nas.counting import saved_jax

    where = _place()
    images = jax.ShapeDtypeStruct((2**20, where.size, where.size, where.stem.inputs), jnp.float32)
    return saved_jax(lambda state, images: function(state, images).sum(), state, images)
