"""The machine that computes: logits from the memory image against the ordinary model; and the oracles of time and series."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from common.architecture import Transformer
from common.ledger import Value
from common.runner import Run
from papers.pim_gpt import series
from papers.pim_gpt.config import Config, Fault
from papers.pim_gpt.functional import Decoder
from papers.pim_gpt.interpreter import interpret
from papers.pim_gpt.layout import Layout, Options
from papers.pim_gpt.legality import violations
from papers.pim_gpt.machine import Machine, Timing
from papers.pim_gpt.program import token
from papers.pim_gpt.simulator import simulate

SMALL = Transformer(
    width=128,
    depth=2,
    heads=8,
    kv_heads=8,
    head_dim=16,
    hidden=512,
    context=64,
    feed_forward="gelu",
    norm="layer",
    positions="learned",
)
"""A GPT-2 in small: layer norm, GELU, learned positions, as many key heads as heads."""


def functional(config: Config, run: Run) -> dict[str, Value]:
    """Logits of the zoo's model (grouped keys, gated feed-forward, rotated positions) and of a small GPT-2 from the memory image."""
    from common import zoo
    from common.data.text import king_james
    from common.models.weights import initial_weights

    trained, text = zoo.load(config.model), king_james()
    run.used(config.model, trained.source, trained.sha256)
    run.used("King James text", text.source, text.sha256)
    words = np.asarray(text.held_out[: config.words]).astype(np.int64)
    small_words = np.random.default_rng(config.seed).integers(0, SMALL.vocabulary, config.small_words)
    models: dict[str, tuple[Any, Any, Any]] = {
        "zoo": (trained.architecture, trained.weights, words),
        "small GPT-2": (SMALL, initial_weights(SMALL, config.seed), small_words),
    }
    # One framework is enough to show a fault.
    frameworks = ("torch", "jax") if config.fault is Fault.none else ("torch",)
    same, apart, exact = {}, {}, {}
    for name, (architecture, weights, tokens) in run.track(models.items(), "computing in memory"):
        want = {framework: _forward(framework, architecture, weights, tokens) for framework in frameworks}
        got = decoder(config, architecture, weights).generate(tokens)
        unrounded = decoder(config, architecture, weights, exact=True).generate(tokens)
        same[name] = min(float((got.argmax(-1) == each.argmax(-1)).mean()) for each in want.values())
        apart[name] = max(float(np.abs(got - each).max()) for each in want.values())
        exact[name] = max(float(np.abs(unrounded - each).max() / np.abs(each).max()) for each in want.values())
        if run.only is None and name == "zoo":
            halves = {each: _forward(each, architecture, weights, tokens, half=True) for each in want}
            run.keep(
                f"{name} logits",
                {
                    "largest": float(np.abs(want["torch"]).max()),
                    "in memory, from float32": {each: float(np.abs(got - want[each]).max()) for each in want},
                    "ordinary BF16, from float32": {each: float(np.abs(halves[each] - want[each]).max()) for each in want},
                    "in memory, from ordinary BF16": {each: float(np.abs(got - halves[each]).max()) for each in want},
                    "unrounded in memory, from float32": {each: float(np.abs(unrounded - want[each]).max()) for each in want},
                },
            )
    return {"functional": same, "functional_logits": apart["zoo"], "functional_exact": exact}


def decoder(config: Config, architecture: Transformer, weights: Any, exact: bool = False) -> Decoder:
    """The model in memory, with the fault of a control if one is asked for."""
    layout = Layout(config.machine(), architecture, config.options(min(architecture.context, config.tokens)))
    made = Decoder(layout, weights, exact)
    if config.fault is Fault.swapped_banks:
        made.memory.image = np.roll(made.memory.image, 1, axis=1)
    return made


def _forward(framework: str, architecture: Transformer, weights: Any, tokens: Any, half: bool = False) -> Any:
    """Logits of the ordinary model in float32, or (``half``) with every operation rounded to BF16."""
    if framework == "torch":
        import torch

        from common.models.transformer_torch import TransformerLM
        from common.models.weights import to_torch

        model = TransformerLM(architecture, dtype=torch.bfloat16 if half else torch.float32)
        to_torch(model, weights)
        with torch.no_grad():
            return model(torch.from_numpy(tokens)[None])[0].float().numpy()
    import jax.numpy as jnp
    from flax import nnx

    from common.models.transformer_jax import TransformerLM as JaxLM
    from common.models.weights import to_flax

    jax_model = JaxLM(architecture, param_dtype=jnp.bfloat16 if half else jnp.float32)
    to_flax(jax_model, weights)
    logits = nnx.jit(lambda model, tokens: model(tokens))(jax_model, jnp.asarray(tokens, jnp.int32)[None])
    return np.asarray(logits[0].astype(jnp.float32))


def small_machine(channels: int, refresh: int, pin_rate: float) -> Machine:
    """Four banks, rows of 64 numbers: small enough to be stepped through ns by ns."""
    return Machine(
        channels=channels, banks=4, row=64, buffer=64, rows=4096, pin_rate=pin_rate, adders=16, multipliers=8, depth=3,
        timing=Timing(refresh_interval=refresh, refresh=40),
    )  # fmt: skip


def small_model(gated: bool) -> Transformer:
    return Transformer(
        width=64, depth=1, heads=4, kv_heads=2 if gated else 4, head_dim=16, hidden=96, context=64, vocabulary=24,
        feed_forward="swiglu" if gated else "gelu", norm="rms" if gated else "layer", positions="rope" if gated else "learned",
    )  # fmt: skip


def oracles(config: Config) -> dict[str, Value]:
    """Broken timing rules; ns between the simulator and the interpreter that steps; errors of the series."""
    from papers.pim_gpt import published

    apart, broken = 0, 0
    choices: tuple[dict[str, Any], ...] = (
        {},
        {"packed": False},
        {"chunks_inside": True},
        {"value_rows": True},
        {"overlap": False},
    )
    whole = config.stride < config.tokens - 1
    for gated, channels, (refresh, pins), choice in itertools.product(
        (False, True), (1, 2) if whole else (2,), ((0, 16.0), (150, 3.0)), choices if whole else choices[:2]
    ):
        machine = small_machine(channels, refresh, pins)
        layout = Layout(machine, small_model(gated), Options(tokens=64, **choice))
        for position in (0, 19):
            program = token(layout, position)
            trace = simulate(program, machine)
            apart = max(apart, abs(interpret(program, machine) - trace.finish))
            broken += len(violations(trace))
    for name in ("GPT2-small", "GPT2-XL") if whole else ("GPT2-small",):
        layout = Layout(config.machine(), published.MODELS[name], config.options())
        broken += len(violations(simulate(token(layout, config.tokens - 1), config.machine())))
    return {"interpreter": apart, "legal": broken, "series": series_errors()}


def series_errors() -> dict[str, float]:
    """Largest relative errors against float64, whose own error is of no account here; tests take mpmath."""
    x = np.linspace(-80, 80, 20001).astype(np.float32)
    positive = np.geomspace(1e-30, 1e30, 20001).astype(np.float32)
    wide = x.astype(np.float64), positive.astype(np.float64)
    return {
        "exp": float(np.abs(series.exp(x) / np.exp(wide[0]) - 1).max()),
        "1/x": float(np.abs(series.reciprocal(positive) * wide[1] - 1).max()),
        "1/sqrt(x)": float(np.abs(series.rsqrt(positive) * np.sqrt(wide[1]) - 1).max()),
    }
