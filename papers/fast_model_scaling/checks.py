"""Claims that hold one way of computing against another: modules, the closed form over a grid, its slopes, both frameworks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from common.agreement import relative_error
from common.nas import Convolution, InvertedResidual
from common.runner import Run
from papers.fast_model_scaling.block import Bottleneck, Chain, MaxPool
from papers.fast_model_scaling.complexity import complexity
from papers.fast_model_scaling.config import Config
from papers.fast_model_scaling.counting import built_jax, built_torch
from papers.fast_model_scaling.counts import of_the_ledger
from papers.fast_model_scaling.scaling import family, scale
from papers.fast_model_scaling.specs import AnyNet, named

MOST_TRACED = 18
"""Layers of the largest network that is built in JAX, whose tracing takes long."""


def built(config: Config, run: Run) -> dict[str, int]:
    """How many networks' modules count differently from their descriptions."""
    wrong, names = {"torch": 0, "jax": 0}, []
    for name, spec in run.track(of_the_ledger(config.everything).items(), "networks built and counted"):
        want = complexity(spec)
        wrong["torch"] += built_torch(spec) != want
        if len(spec.network().layers) <= MOST_TRACED:
            names.append(name)
            wrong["jax"] += built_jax(spec) != want
    run.keep("built_in_jax", names)
    return wrong


def swept(config: Config) -> dict[str, int]:
    """How many networks of a grid of alpha and s the closed form counts differently."""
    import jax
    import jax.numpy as jnp
    import torch

    from papers.fast_model_scaling import sweep_jax, sweep_torch

    alphas, s = np.linspace(0, 1, config.grid), np.geomspace(1, 16, config.grid)
    wrong = {"torch": 0, "jax": 0}
    for base in [named("RegNetY-4.0GF"), *([named("EfficientNet-B0")] if config.everything else [])]:
        want = np.array([[complexity(scale(base, family(a), each)) for each in s] for a in alphas]).transpose(2, 0, 1)
        found = {"torch": np.array([each.numpy() for each in sweep_torch.grid(base, *map(torch.from_numpy, (alphas, s)))])}
        with jax.enable_x64(True):
            found["jax"] = np.array(sweep_jax.grid(base, jnp.asarray(alphas), jnp.asarray(s)))
        for name, each in found.items():
            wrong[name] += int((each != want).any(0).sum())
    return wrong


def equal_stages() -> AnyNet:
    """A network that follows the theory: every block alike, wide, without strides and gates."""
    return AnyNet(
        depths=(4,), widths=(4096,), strides=(1,), group_widths=(64,), bottlenecks=(1.0,), stem=64, resolution=128
    )  # fmt: skip


def slopes() -> dict[str, float]:
    """d log activations / d log s at s = 4, for three alphas, by automatic differentiation."""
    import torch

    from papers.fast_model_scaling import sweep_torch

    alphas = {"uniform": 1 / 3, "fast": 0.8, "width alone": 1.0}
    at = torch.tensor(list(alphas.values()), dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    found = sweep_torch.slopes(equal_stages(), *at, stem=False)
    return dict(zip(alphas, found[2, :, 0].tolist(), strict=True))


def every_kind() -> Chain:
    """A small network with every kind of layer, of few shapes, so that it is quickly compiled."""
    block = Bottleneck(inputs=16, outputs=16, hidden=16, groups=2, squeeze=16)
    return Chain(
        layers=(
            Convolution(inputs=3, outputs=16, kernel=3, stride=2, activation="silu"),
            InvertedResidual(inputs=16, outputs=16, expand=1, squeeze=16, activation="silu"),
            MaxPool(inputs=16),
            block,
            replace(block, stride=2),
        ),
        classes=16,
    )


def twin(config: Config) -> float:
    """Largest relative difference of logits and gradients of both frameworks, in evaluation mode."""
    import jax
    import jax.numpy as jnp
    import torch
    import torch.nn.functional as F
    from flax import nnx

    from common.models.weights import torch_layout, torch_name
    from papers.fast_model_scaling import model_jax, model_torch

    net, wide = every_kind(), config.mechanism
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(2, 16, 16, 3)), rng.integers(net.classes, size=2)
    mine = model_torch.Network(net, 1, dtype=torch.float64).eval()
    logits = mine(torch.from_numpy(images))
    F.cross_entropy(logits, torch.from_numpy(labels)).backward()
    want = {name: np.asarray(each.grad) for name, each in mine.named_parameters()}
    with jax.enable_x64(wide):
        theirs = model_jax.Network(net, 1, param_dtype=jnp.float64 if wide else jnp.float32)
        theirs.eval()
        graph, parameters, rest = nnx.split(theirs, nnx.Param, ...)  # type: ignore[misc]

        def loss_of(parameters: Any, images: Any) -> Any:
            found = nnx.merge(graph, parameters, rest)(images)
            return -jnp.take_along_axis(jax.nn.log_softmax(found), labels[:, None], 1).mean(), found

        # It runs once, and an optimised program would not pay.
        compiled = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
        (_, found), gradients = compiled(parameters, jnp.asarray(images))
        got = {torch_name(path): torch_layout(path, np.asarray(leaf[...])) for path, leaf in nnx.to_flat_state(gradients)}
    if set(got) != set(want):
        raise AssertionError(f"parameters differ by name: {sorted(set(got) ^ set(want))[:3]}")
    return max(relative_error(found, logits.detach().numpy()), *(relative_error(got[name], want[name]) for name in want))
