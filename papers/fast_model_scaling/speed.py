"""Times: the closed form over a grid against a Python loop, grouped convolutions against the library's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common import meter
from common.ledger import Value
from common.runner import Run
from papers.fast_model_scaling.complexity import complexity
from papers.fast_model_scaling.config import Config
from papers.fast_model_scaling.scaling import family, scale
from papers.fast_model_scaling.specs import named
from papers.fast_model_scaling.sweep import scaled

COUNTED = 40
"""Networks that the loops count; their time is taken for all."""


def sweep_speed(config: Config, run: Run) -> Value:
    """How many times as fast as a loop the compiled sweep is: over scaling and counting, and over the formula in a loop."""
    import jax
    import jax.numpy as jnp
    import torch

    from papers.fast_model_scaling import sweep_jax, sweep_torch

    base = named("RegNetY-4.0GF")
    alphas, s = np.linspace(0, 1, config.swept), np.geomspace(1, 16, config.swept)
    with jax.enable_x64(True), run.timing():
        points = jnp.asarray(alphas), jnp.asarray(s)
        tensors = torch.from_numpy(alphas), torch.from_numpy(s)
        seconds = meter.median_seconds(
            {
                "jax": lambda: jax.block_until_ready(sweep_jax.grid(base, *points)),
                "torch": lambda: sweep_torch.grid(base, *tensors),
            },
            config.repeats,
            least=0.02,
        )
        rng = np.random.default_rng(0)
        some = [(float(rng.choice(alphas)), float(rng.choice(s))) for _ in range(COUNTED)]
        counted = _each(lambda a, each: complexity(scale(base, family(a), each)), some)
        formula = _each(lambda a, each: scaled(base, np.array([a]), np.array([each])), some)
    run.keep("sweep_seconds", {**seconds, "counting one": counted, "formula of one": formula})
    whole = config.swept**2
    values = {f"{name} over counting": whole * counted / each for name, each in seconds.items()}
    return run.busy or values | {"jax over the formula in a loop": whole * formula / seconds["jax"]}


def _each(function: Callable[[float, float], Any], points: list[tuple[float, float]]) -> float:
    """Seconds of one call."""
    function(*points[0])
    start = time.perf_counter()
    for point in points:
        function(*point)
    return (time.perf_counter() - start) / len(points)


WIDTHS = (8, 16, 64)
CHANNELS, SIDE, BATCH = 128, 28, 4


def group_claims(config: Config, run: Run) -> dict[str, Value]:
    """The libraries' times over the kernel's by width of groups, and the time of a multiply-add in narrow over wide groups."""
    seconds: dict[str, dict[int, float]] = {}
    with run.timing():
        for each in WIDTHS:
            for name, value in meter.median_seconds(_convolutions(each), config.repeats, warmup=2, least=0.02).items():
                seconds.setdefault(name, {})[each] = value
    run.keep("group_seconds", {name: {str(g): each for g, each in values.items()} for name, values in seconds.items()})
    pairs = {"": ("conv2d", "torch"), ", with gradients": ("conv2d, with gradients", "torch, with gradients")}
    pairs |= {", channels last": ("conv2d, channels last", "torch")}
    pairs |= {", jax, with gradients": ("lax.conv, with gradients", "jax, with gradients")}
    values = {f"g = {g}{how}": seconds[one][g] / seconds[other][g] for how, (one, other) in pairs.items() for g in WIDTHS}
    for how in ("", ", channels last"):
        values[f"best{how}"] = max(values[f"g = {g}{how}"] for g in WIDTHS)
    # With as many channels, narrow groups have fewer multiply-adds.
    share = WIDTHS[-1] / WIDTHS[0]
    names = {"library": "conv2d", "library, channels last": "conv2d, channels last"}
    narrow = {what: share * seconds[name][WIDTHS[0]] / seconds[name][WIDTHS[-1]] for what, name in names.items()}
    return {"group_conv": run.busy or values, "narrow": run.busy or narrow}


def _convolutions(each: int) -> dict[str, Callable[[], Any]]:
    """Calls by name; conv2d has its channels first unless said, which is its default."""
    import jax
    import jax.numpy as jnp
    import torch

    from papers.fast_model_scaling.kernel import group_conv
    from papers.fast_model_scaling.kernel.cases import conv2d, conv2d_contiguous

    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, SIDE, SIDE, CHANNELS), np.float32)
    kernels = rng.standard_normal((3, 3, each, CHANNELS), np.float32)
    x, weight = (torch.from_numpy(array).requires_grad_() for array in (images, kernels))
    arrays = jnp.asarray(images), jnp.asarray(kernels)

    def forward(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return function(x=x, weight=weight)

        return call

    def both(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            y = function(x=x, weight=weight)
            return torch.autograd.grad(y, (x, weight), torch.ones_like(y))

        return call

    def library(x: Any, weight: Any) -> Any:
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, weight, (1, 1), "SAME", dimension_numbers=names, feature_group_count=CHANNELS // each
        )

    def gradients(function: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(jax.value_and_grad(lambda x, weight: function(x, weight).sum(), (0, 1)))
        return lambda: jax.block_until_ready(compiled(*arrays))

    return {
        "torch": forward(group_conv), "conv2d": forward(conv2d_contiguous), "conv2d, channels last": forward(conv2d),
        "torch, with gradients": both(group_conv), "conv2d, with gradients": both(conv2d_contiguous),
        "jax, with gradients": gradients(group_conv), "lax.conv, with gradients": gradients(library),
    }  # fmt: skip
